"""Scores that a module makes of one key, one query or one head at a time, beside each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncheck import AttentionExtractor
from tests.capture.handwritten import Written, heads, merged, require, weights_of
from tests.capture.plain_torch.negative_cases import WIDTH

Scores = Callable[[Tensor, Tensor], Tensor]


def by_key(q: Tensor, k: Tensor) -> list[Tensor]:
    return [(q * k[:, :, j : j + 1]).sum(-1) / 2 for j in range(k.shape[2])]


def keys_stacked(q: Tensor, k: Tensor) -> Tensor:
    return torch.stack(by_key(q, k), -1)


def keys_stacked_in_front(q: Tensor, k: Tensor) -> Tensor:
    return torch.stack(by_key(q, k)).movedim(0, -1)


def keys_joined(q: Tensor, k: Tensor) -> Tensor:
    return torch.cat([scores.unsqueeze(-1) for scores in by_key(q, k)], -1)


def single_keys(q: Tensor, k: Tensor) -> Tensor:
    single = [torch.einsum("bhid,bhd->bhi", q, key) / 2 for key in k.unbind(2)]
    return torch.stack(single, dim=-1)


def columns(q: Tensor, k: Tensor) -> Tensor:
    scores = torch.empty(*q.shape[:3], k.shape[2])
    for j, column in enumerate(by_key(q, k)):
        scores[..., j] = column
    return scores


def slices(q: Tensor, k: Tensor) -> Tensor:
    scores = torch.empty(*q.shape[:3], k.shape[2])
    for j, column in enumerate(by_key(q, k)):
        scores[:, :, :, j : j + 1] = column[..., None]
    return scores


def rows(q: Tensor, k: Tensor) -> Tensor:
    scores = torch.empty(*q.shape[:3], k.shape[2])
    for i in range(q.shape[2]):
        scores[:, :, i] = (q[:, :, i : i + 1] * k).sum(-1) / 2
    return scores


def rows_of_matrices(q: Tensor, k: Tensor) -> Tensor:
    scores = torch.empty(*q.shape[:3], k.shape[2])
    for i in range(q.shape[2]):
        scores[:, :, i : i + 1] = q[:, :, i : i + 1] @ k.mT / 2
    return scores


def rows_stacked(q: Tensor, k: Tensor) -> Tensor:
    return torch.stack([(query.unsqueeze(2) * k).sum(-1) / 2 for query in q.unbind(2)], 2)


def matrices(q: Tensor, k: Tensor) -> Tensor:
    scores = torch.empty(*q.shape[:3], k.shape[2])
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            scores[b, h] = q[b, h] @ k[b, h].mT / 2
    return scores


def matrices_stacked(q: Tensor, k: Tensor) -> Tensor:
    each = [[q[b, h] @ k[b, h].mT / 2 for h in range(q.shape[1])] for b in range(q.shape[0])]
    return torch.stack([torch.stack(held) for held in each])


def each_head(q: Tensor, k: Tensor) -> Tensor:
    scores = torch.empty(*q.shape[:3], k.shape[2])
    for h in range(q.shape[1]):
        scores[:, h] = q[:, h] @ k[:, h].mT / 2
    return scores


def number_by_number(q: Tensor, k: Tensor) -> Tensor:
    scores = torch.empty(*q.shape[:3], k.shape[2])
    for b, h, i, j in itertools.product(*map(range, scores.shape)):
        scores[b, h, i, j] = torch.dot(q[b, h, i], k[b, h, j]) / 2
    return scores


def vector_by_vector(q: Tensor, k: Tensor) -> Tensor:
    scores = torch.empty(*q.shape[:3], k.shape[2])
    for b, h, i, j in itertools.product(*map(range, scores.shape)):
        scores[b, h, i, j] = (q[b, h, i] * k[b, h, j]).sum() / 2
    return scores


ONE_BY_ONE = [
    *(number_by_number, vector_by_vector),
    *(keys_stacked, keys_stacked_in_front, keys_joined, single_keys, columns, slices),
    *(rows, rows_of_matrices, rows_stacked, matrices, matrices_stacked, each_head),
]


@pytest.mark.parametrize("scores", ONE_BY_ONE)
@pytest.mark.parametrize("declares", [0, 4])
@pytest.mark.parametrize(("batch", "length"), [(1, 5), (2, 6), (4, 4)])
def test_scores_one_by_one_are_whole_rows(
    scores: Scores, declares: int, batch: int, length: int
) -> None:
    def attend(x: Tensor) -> Tensor:
        q = heads(x, 4)
        return merged(scores(q, q.flip(2)).softmax(-1) @ q)

    x = torch.randn(batch, length, 16)
    q = heads(x, 4)
    require(Written(attend, declares), (x,), weights_of(q, q.flip(2)))


def divided(scores: Tensor, v: Tensor) -> Tensor:
    raised = scores.exp()
    return (raised / raised.sum(-1, keepdim=True)) @ v


def divided_behind(scores: Tensor, v: Tensor) -> Tensor:
    raised = (scores - scores.amax(-1, keepdim=True)).exp()
    return (raised @ v) / raised.sum(-1, keepdim=True)


def in_the_logarithm(scores: Tensor, v: Tensor) -> Tensor:
    return (scores - scores.logsumexp(-1, keepdim=True)).exp() @ v


def first_axis(scores: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("jbhi,bhjd->bhid", scores.movedim(-1, 0).softmax(0), v)


def a_column_at_a_time(scores: Tensor, v: Tensor) -> Tensor:
    weights = scores.softmax(-1)
    return sum(weights[..., j, None] * v[:, :, j, None] for j in range(v.shape[2]))


@pytest.mark.parametrize(
    "weigh", [divided, divided_behind, in_the_logarithm, first_axis, a_column_at_a_time]
)
def test_whatever_softmax_follows(weigh: Callable[[Tensor, Tensor], Tensor]) -> None:
    def attend(x: Tensor) -> Tensor:
        q = heads(x, 4)
        return merged(weigh(keys_stacked(q, q), q))

    x = torch.randn(2, 6, 16)
    require(Written(attend, 4), (x,), weights_of(heads(x, 4), heads(x, 4)))


def by_distance(q: Tensor, key: Tensor) -> Tensor:
    return -(q - key).square().sum(-1)


def additive(q: Tensor, key: Tensor) -> Tensor:
    return F.linear(torch.tanh(q + key), nn.Parameter(torch.ones(1, 4))).squeeze(-1)


@pytest.mark.parametrize("score", [by_distance, additive])
@pytest.mark.parametrize(("batch", "length"), [(1, 5), (2, 6), (4, 4)])
def test_keys_are_scored_one_by_one_in_other_ways(
    score: Callable[[Tensor, Tensor], Tensor], batch: int, length: int
) -> None:
    def weights(x: Tensor) -> Tensor:
        q, k = heads(x, 4), heads(x.flip(-1), 4)
        return torch.stack([score(q, key) for key in k.split(1, dim=2)], -1).softmax(-1)

    x = torch.randn(batch, length, 16)
    attend = Written(lambda x: merged(weights(x) @ heads(x, 4)), 4)
    require(attend, (x,), weights(x))


class Centred(nn.Module):
    """Distances to the mean of each frame, and a condition for each: gates, and no keys."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.unflatten(1, (2, 3)).unflatten(-1, (2, 8)).transpose(2, 3)
        apart = (frames - frames.mean(3, keepdim=True)).square().sum(-1, keepdim=True)
        shown = frames * torch.sigmoid(self.gate(frames + frames.amax(3, keepdim=True)))
        return (shown / (1 + apart)).transpose(2, 3).flatten(3).flatten(1, 2)


class CodedRouter(nn.Module):
    """Each expert has a learned code, scaled to length 1, that scores all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.ParameterList(torch.randn(WIDTH) for _ in range(6))
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        scores = [x @ F.normalize(code, dim=0) for code in self.codes]
        weights = torch.stack(scores, -1).softmax(-1)
        outputs = torch.stack([expert(x) for expert in self.experts], -2)
        return (weights.unsqueeze(-2) @ outputs).squeeze(-2)


class HeadsWeighed(nn.Module):
    """Each head scores all positions by their mean; what runs over the heads is no attention."""

    def forward(self, x: Tensor) -> Tensor:
        split = heads(x, 4)
        scores = torch.stack([held @ held.mT for held in split.unbind(1)], 1)
        return merged((scores.softmax(1)[..., None] * split.unsqueeze(2)).sum(3))


@pytest.mark.parametrize("other", [CodedRouter, HeadsWeighed, Centred])
def test_what_stands_beside_each_other_may_be_no_keys(other: type[nn.Module]) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 32, batch_first=True)
    maps = AttentionExtractor(nn.Sequential(layer, other())).get_attention(torch.randn(2, 6, WIDTH))
    assert tuple(maps.names) == ("0.self_attn",)
