"""Heatmaps in bytes, and the same as PNG."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colormaps
from matplotlib.image import imread
from numpy.typing import NDArray

from attncheck.attention import LayerAttention
from attncheck.checks import check_causal
from attncheck.plot.cells import Cells
from attncheck.report import Heatmap, heatmaps_of
from attncheck.report.heatmaps import HIDDEN
from attncheck.report.images import evidence_uri, heatmap_uri


def pixels_of(uri: str) -> NDArray[np.float64]:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(imread(io.BytesIO(base64.b64decode(data)))[..., :3], dtype=np.float64)


@given(
    seed=st.integers(0, 2**16), rows=st.integers(1, 9), scale=st.sampled_from([1e-12, 1e-3, 1.0])
)
def test_cells_come_back_within_half_a_level(seed: int, rows: int, scale: float) -> None:
    draw = np.random.default_rng(seed)
    values = draw.random((rows, 7)) * scale
    hidden = draw.random((rows, 7)) < 0.3
    values[hidden] = 0
    heatmap = Heatmap.of(Cells(values, hidden, 1, 1))
    again = Heatmap.from_dict(json.loads(json.dumps(heatmap.to_dict())))
    assert ((again.codes == HIDDEN) == hidden).all()
    back = again.codes / 254 * again.peak
    allowed = values.max() * (1 / 508 + 1e-5)
    assert np.abs(back - values)[~hidden].max(initial=0) <= allowed


def test_broken_numbers_count_as_nothing() -> None:
    values = np.array([[np.nan, np.inf], [-1.0, 0.5]])
    heatmap = Heatmap.of(Cells(values, np.zeros((2, 2), dtype=bool), 1, 1))
    assert heatmap.codes.tolist() == [[0, 0], [0, 254]]
    assert heatmap.peak == 0.5
    empty = Heatmap.of(Cells(np.zeros((2, 2)), np.zeros((2, 2), dtype=bool), 1, 1))
    assert (empty.peak, empty.codes.max()) == (0, 0)


def test_long_sequences_are_added_up_in_blocks() -> None:
    weights = torch.full((2, 1, 100, 100), 1 / 100)
    name, heatmap = next(iter(heatmaps_of(LayerAttention(weights, index=3, heads=(5,)))))
    assert name == "L3H5"
    assert heatmap.codes.shape == (34, 34)
    assert (heatmap.query_block, heatmap.key_block) == (3, 3)
    assert heatmap.peak == pytest.approx(0.03, abs=1e-6)


def test_a_picture_has_the_colours_of_the_weights() -> None:
    codes = np.array([[0, 100, 253], [254, HIDDEN, 200]], dtype=np.uint8)
    shown = pixels_of(heatmap_uri(Heatmap(codes, 1.0)))
    size = shown.shape[1] // 3
    assert shown.shape == (2 * size, 3 * size, 3)
    middle = shown[size // 2 :: size, size // 2 :: size]
    expected = colormaps["viridis"](codes / 254)[..., :3]
    # ten points of viridis, joined by straight lines
    assert np.abs(middle - expected)[codes != HIDDEN].max() < 0.02
    assert middle[1, 1].tolist() == pytest.approx([0xD0 / 255] * 3, abs=1e-6)


def test_cells_that_break_the_rule_are_framed() -> None:
    weights = torch.eye(6)
    weights[1, 4] = 0.25
    evidence = check_causal(weights).evidence
    assert evidence is not None
    shown = pixels_of(evidence_uri(evidence))
    red = (shown[..., 0] > 0.85) & (shown[..., 1] < 0.05) & (shown[..., 2] < 0.2)
    size = shown.shape[0] // 6
    found = np.argwhere(red) // size
    assert {tuple(cell) for cell in found.tolist()} == {(1, 4)}
    assert not red[size + size // 2, 4 * size + size // 2]


def test_huge_windows_stay_one_pixel_a_cell() -> None:
    codes = np.zeros((500, 400), dtype=np.uint8)
    assert pixels_of(heatmap_uri(Heatmap(codes, 1.0))).shape[:2] == (500, 400)
