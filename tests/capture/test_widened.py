"""Scores in wider tensors: sinks that are joined or padded, and the best ones put back."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attncheck import AttentionExtractor, CaptureError
from tests.capture.reference import Heads

N = 6
X = torch.randn(2, N, 16, generator=torch.Generator().manual_seed(17))


def padded(scores: Tensor) -> Tensor:
    return F.pad(scores, (1, 0)).softmax(-1)[..., 1:]


def padded_behind(scores: Tensor) -> Tensor:
    return F.pad(scores, (0, 3), value=0.5).softmax(-1)[..., :-3]


def two_sinks(scores: Tensor) -> Tensor:
    sinks = scores.new_zeros(2, 4, N, 2)
    return torch.cat([sinks, scores], -1).softmax(-1)[..., 2:]


def two_joins(scores: Tensor) -> Tensor:
    sink = scores.new_zeros(2, 4, N, 1)
    return torch.cat([scores, sink, sink + 1], -1).softmax(-1).narrow(-1, 0, N)


def raised(scores: Tensor) -> Tensor:
    weights = torch.cat([scores.new_zeros(2, 4, N, 2), scores], -1).exp()
    return (weights / weights.sum(-1, keepdim=True))[..., 2:]


def raised_and_cut(scores: Tensor) -> Tensor:
    weights = F.pad(scores, (2, 0)).exp()
    return weights[..., 2:] / weights.sum(-1, keepdim=True)


SINKS = [padded, padded_behind, two_sinks, two_joins, raised, raised_and_cut]


@pytest.mark.parametrize("weigh", SINKS, ids=lambda f: f.__name__)
def test_columns_that_are_cut_off_are_sinks(weigh: Callable[[Tensor], Tensor]) -> None:
    used = []

    def attend(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        used.append(weigh(q @ k.mT / 2))
        return used[-1] @ v

    (layer,) = AttentionExtractor(Heads(attend)).get_attention(X).layers
    torch.testing.assert_close(layer.weights, used[0])
    assert layer.sink_mass is not None
    torch.testing.assert_close(layer.weights.sum(-1) + layer.sink_mass, torch.ones(2, 4, N))


def test_keys_that_are_cut_off_are_no_sinks() -> None:
    def attend(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.pad(q @ k.mT / 2, (1, 0)).softmax(-1)[..., :-1] @ v

    with pytest.raises(CaptureError, match="gives no weights over keys"):
        AttentionExtractor(Heads(attend)).get_attention(X)


def put_back(scores: Tensor) -> Tensor:
    best, chosen = scores.topk(3, -1)
    return torch.full_like(scores, -math.inf).scatter(-1, chosen, best)


def put_back_in_place(scores: Tensor) -> Tensor:
    best, chosen = scores.topk(3, -1)
    row = torch.full_like(scores, -math.inf)
    row.scatter_(-1, chosen, best)
    return row


@pytest.mark.parametrize("choose", [put_back, put_back_in_place])
def test_best_scores_that_are_put_back(choose: Callable[[Tensor], Tensor]) -> None:
    used = []

    def attend(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        used.append(choose(q @ k.mT / 2).softmax(-1))
        return used[-1] @ v

    (layer,) = AttentionExtractor(Heads(attend)).get_attention(X).layers
    torch.testing.assert_close(layer.weights, used[0])
    assert torch.equal(layer.visible().expand_as(layer.weights), layer.weights > 0)
    assert (layer.weights > 0).sum() == 2 * 4 * N * 3
