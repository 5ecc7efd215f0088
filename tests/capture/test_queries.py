"""Some query positions only: the rows of the whole, and everybody knows where they stand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attncheck import (
    METRICS,
    AttentionExtractor,
    AttentionMaps,
    assert_causal,
    assert_segments_isolated,
    profile_attention,
)
from attncheck.attention import LayerAttention
from attncheck.metrics import measure_layer
from attncheck.patterns import collect_evidence
from tests.capture.reference import Heads, stack

X = torch.randn(2, 32, 16, generator=torch.Generator().manual_seed(1))
N = X.shape[1]
PADDED = torch.ones(2, N, dtype=torch.bool)
PADDED[1, :5] = False
SEES = PADDED[:, None, None] & torch.ones(N, N, dtype=torch.bool).tril()
STRICT = torch.ones(N, N, dtype=torch.bool).tril(-1)[None, None]


def causal(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def both_ways(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def padded(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=SEES)


def never_itself(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=STRICT)


def own(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT / 2, dim=-1) @ v


ATTENTION = [causal, both_ways, padded, never_itself, own]
CHOICES: list[tuple[Any, list[int]]] = [
    (-1, [N - 1]),
    ([3, 30, 7], [3, 30, 7]),
    (slice(4, 20), list(range(4, 20))),
    (slice(-6, None), list(range(N - 6, N))),
    (np.array([0, 9]), [0, 9]),
]


@pytest.mark.parametrize("store", ["weights", "qk"])
@pytest.mark.parametrize(("choice", "rows"), CHOICES, ids=lambda value: str(value)[:12])
@pytest.mark.parametrize("attend", ATTENTION, ids=lambda attend: attend.__name__)
def test_rows_are_those_of_the_whole(attend: Any, choice: Any, rows: list[int], store: Any) -> None:
    model = stack(attend)
    whole = AttentionExtractor(model).get_attention(X)
    some = AttentionExtractor(model, queries=choice, store=store).get_attention(X)
    for layer, every in zip(some.layers, whole.layers, strict=True):
        assert layer.shape == (2, 4, len(rows), N)
        assert layer.query_positions().tolist() == rows
        assert layer.positional == every.positional
        torch.testing.assert_close(layer.weights, every.weights[:, :, rows], atol=1e-6, rtol=0)
        seen = every.visible().expand(2, 4, N, N)[:, :, rows]
        assert layer.visible().expand_as(seen).equal(seen)
        assert layer.valid_rows().equal(every.valid_rows()[:, :, rows])
        measured, expected = (measure_layer(each, METRICS.values()) for each in (layer, every))
        for name, (values, valid) in measured.items():
            if name == "sink_mass":  # its key is the first that any query held sees
                continue
            wanted, counted = (part[:, :, rows] for part in expected[name])
            assert valid.equal(counted), name
            torch.testing.assert_close(values[valid], wanted[valid], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("choice", "rows"), CHOICES, ids=lambda value: str(value)[:12])
@pytest.mark.parametrize("attend", ATTENTION, ids=lambda attend: attend.__name__)
def test_patterns_see_the_rows_at_their_places(attend: Any, choice: Any, rows: list[int]) -> None:
    model = stack(attend)
    every = AttentionExtractor(model).get_attention(X).layers[0]
    some = AttentionExtractor(model, queries=choice).get_attention(X).layers[0]
    # The same rows, the others emptied by hand: a layer that needs no idea of chosen queries.
    absent = torch.ones(N, dtype=torch.bool)
    absent[rows] = False
    emptied = LayerAttention(
        every.weights.masked_fill(absent[:, None], 0),
        kind="self",
        mask=every.visible() & ~absent[:, None],
        causal=every.causal,
        sighted=every.sighted_rows() & ~absent,
    )
    found, expected = (collect_evidence(layer, tokens=[0, 1] * 16) for layer in (some, emptied))
    for name in ("previous_token", "diagonal", "first_token", "duplicate_token", "uniform"):
        np.testing.assert_allclose(found.mass(name), expected.mass(name), atol=1e-6, err_msg=name)
        np.testing.assert_allclose(found.chance(name), expected.chance(name), atol=1e-6)


def test_checks_know_the_positions() -> None:
    maps = AttentionExtractor(stack(causal), queries=[2, 9]).get_attention(X)
    assert_causal(maps)
    leaking = maps.layers[0].changed(weights=maps[0].roll(1, -1), causal=False)
    with pytest.raises(AssertionError, match="key is later than query"):
        assert_causal(leaking)
    segments = [0] * 3 + [1] * (N - 3)
    with pytest.raises(AssertionError, match="not isolated"):
        assert_segments_isolated(maps, segments)
    early = AttentionExtractor(stack(causal), queries=[0, 2]).get_attention(X)
    assert_segments_isolated(early, segments)


def test_positions_are_saved(tmp_path: Any) -> None:
    maps = AttentionExtractor(stack(padded), queries=[2, 9]).get_attention(X)
    maps.save(tmp_path / "maps.safetensors")
    (loaded, _), (held, _) = AttentionMaps.load(tmp_path / "maps.safetensors").layers, maps.layers
    assert loaded.query_positions().tolist() == [2, 9]
    assert loaded.valid_rows().equal(held.valid_rows())
    assert loaded.positional


def test_a_profile_of_some_queries_counts_them() -> None:
    maps = AttentionExtractor(stack(causal), queries=[2, 9, 20]).get_attention(X)
    assert profile_attention(maps).layers[0].counts["entropy"].tolist() == [6] * 4


@pytest.mark.parametrize(
    ("choice", "error", "message"),
    [
        (99, ValueError, "queries: no query 99; the layer has 32, 0 to 31"),
        ([1, -31], ValueError, "queries: names a query twice"),
        ([], ValueError, "queries: selects none of 32"),
        (1.5, TypeError, "queries: 1.5 is float; expected query numbers"),
    ],
    ids=str,
)
def test_queries_that_are_not_there(choice: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AttentionExtractor(stack(causal), queries=choice).get_attention(X)
