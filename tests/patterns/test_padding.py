"""A sequence is named the same alone and among padding, at whichever end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from attncheck.attention import LayerAttention
from attncheck.patterns import classify_evidence, collect_evidence, create_synthetic_attention

KINDS = ("previous_token", "local", "block", "first_token", "broadcast", "mixed", "uniform")


def heads(n: int, causal: bool, seed: int) -> Tensor:
    """Clear and noisy heads of several kinds, ``(head, query, key)``, float64."""
    made = [
        create_synthetic_attention(n, kind, level, causal=causal, seed=seed + i)
        for i, kind in enumerate(KINDS)
        for level in (0.1, 0.5, 0.8)
    ]
    return torch.stack(made).double()


def padded(weights: Tensor, before: int, after: int, causal: bool) -> LayerAttention:
    size = weights.shape[-1] + before + after
    wide = torch.nn.functional.pad(weights, (before, after, before, after))[None]
    seen = torch.zeros(size, dtype=torch.bool)
    seen[before : size - after] = True
    wide[:, :, ~seen] = 1 / size  # rows of padding hold something; nobody may read it
    return LayerAttention(wide, mask=seen[None, None, None], causal=causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pad", [(0, 9), (9, 0), (3, 40)])
@pytest.mark.parametrize("n", [9, 17, 40])
def test_padding_moves_no_label(n: int, pad: tuple[int, int], causal: bool) -> None:
    require_same(n, pad, causal)


@pytest.mark.parametrize("pad", [(0, 90), (77, 0)])
@pytest.mark.parametrize("n", [250, 300])
def test_padding_moves_no_grid_of_cuts(n: int, pad: tuple[int, int]) -> None:
    require_same(n, pad, causal=True)


def require_same(n: int, pad: tuple[int, int], causal: bool) -> None:
    weights = heads(n, causal, seed=n)
    found = []
    for layer in (LayerAttention(weights[None], causal=causal), padded(weights, *pad, causal)):
        evidence = collect_evidence(layer)
        found.append(classify_evidence([evidence], [layer.heads], [0]))
    for alone, beside in zip(*found, strict=True):
        assert beside.label == alone.label
        assert beside.note == alone.note
        assert [score.pattern for score in beside.ranked if score.strength > 1e-6] == [
            score.pattern for score in alone.ranked if score.strength > 1e-6
        ]
        for score in alone.ranked:
            other = beside.score(score.pattern)
            np.testing.assert_allclose(
                (other.mass, other.chance, other.strength),
                (score.mass, score.chance, score.strength),
                atol=1e-9,
                err_msg=score.pattern,
            )


def test_sequences_of_several_paddings_are_cut_each_by_its_own_length() -> None:
    weights = heads(280, causal=False, seed=1)[6:9]
    one, other = padded(weights, 20, 0, causal=False), padded(weights, 0, 20, causal=False)
    assert one.mask is not None
    assert other.mask is not None
    both = LayerAttention(
        torch.cat([one.weights, other.weights]), mask=torch.cat([one.mask, other.mask])
    )
    alone = collect_evidence(LayerAttention(weights[None])).mass("block")
    np.testing.assert_allclose(collect_evidence(both).mass("block"), alone, atol=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["head", "row", "cell"])
def test_what_is_no_number_names_no_head_and_moves_no_other(bad: float, where: str) -> None:
    weights = heads(16, causal=True, seed=3)[None]
    broken = weights.clone()
    broken[{"head": (0, 4), "row": (0, 4, 7), "cell": (0, 4, 7, 2)}[where]] = bad
    numbers = tuple(range(weights.shape[1]))
    clean, found = (
        classify_evidence([collect_evidence(LayerAttention(w, causal=True))], [numbers], [0])
        for w in (weights, broken)
    )
    assert found[4].label == "undetermined"
    assert found[4].note == "NaN or infinite weights"
    assert found[4].ranked == ()
    assert [a for a in found if a.head != 4] == [b for b in clean if b.head != 4]
    only = collect_evidence(LayerAttention(broken[:, 4:5], causal=True))
    assert [label.label for label in classify_evidence([only], [(0,)], [0])] == ["undetermined"]
    assert only.lift("local").shape == (1,)
