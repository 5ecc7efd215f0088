"""Attention by pairs of query and key, as recurrent decoders and graph networks compute it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.capture.plain_torch.case import Case
from tests.capture.reference import softmax_rows

LENGTH, SIZE = 5, 6


class Scoring(nn.Module):
    """Scores pairs by a function; keeps its scores, computed pair by pair, for the test."""

    def __init__(self, attend: Callable[..., Tensor], score: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attend, self.score = attend, score
        self.both = nn.Linear(2 * SIZE, 4)
        self.to_one = nn.Linear(4, 1)
        self.of_query = nn.Linear(SIZE, 1)
        self.of_key = nn.Linear(SIZE, 1)
        self.general = nn.Linear(SIZE, SIZE)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return self.attend(self, query, key)


def concatenated(m: Scoring, query: Tensor, key: Tensor) -> Tensor:
    n_query, n_key = query.shape[1], key.shape[1]
    pairs = torch.cat(
        [query[:, :, None].expand(-1, -1, n_key, -1), key[:, None].expand(-1, n_query, -1, -1)], -1
    )
    return m.to_one(m.both(pairs).tanh()).squeeze(-1).softmax(-1) @ key


def one_step(m: Scoring, query: Tensor, key: Tensor) -> Tensor:
    state = query[:, :1].repeat(1, key.shape[1], 1)
    energy = m.to_one(torch.tanh(m.both(torch.cat((state, key), dim=2)))).squeeze(2)
    return torch.bmm(energy.softmax(1).unsqueeze(1), key)


def by_mlp(m: Scoring, query: Tensor, key: Tensor) -> Tensor:
    scored: Tensor = m.to_one(m.both(torch.cat([query, key])).tanh())
    return scored


def graph(m: Scoring, query: Tensor, key: Tensor) -> Tensor:
    scores = F.leaky_relu(m.of_query(query) + m.of_key(key).transpose(1, 2), 0.2)
    return scores.softmax(-1) @ key


def of_each(m: Scoring, query: Tensor, key: Tensor) -> Tensor:
    return F.leaky_relu(m.of_query(query) + m.of_key(key), 0.2)


def time_first(m: Scoring, query: Tensor, key: Tensor) -> Tensor:
    steps = m.general(key).transpose(0, 1)
    scores = (query[:, 0] * steps).sum(-1)
    return (scores.softmax(0)[..., None] * key.transpose(0, 1)).sum(0)


def time_first_by_einsum(m: Scoring, query: Tensor, key: Tensor) -> Tensor:
    scores = torch.einsum("ne,tne->tn", query[:, 0], m.general(key).transpose(0, 1))
    return torch.einsum("tn,nte->ne", scores.softmax(0), key)


def generally(m: Scoring, query: Tensor, key: Tensor) -> Tensor:
    return query @ m.general(key)


def cosine(m: Scoring, query: Tensor, key: Tensor) -> Tensor:
    scores = F.cosine_similarity(query[:, :, None], key[:, None], dim=3) * 4
    return scores.softmax(-1) @ key


def angle(m: Scoring, query: Tensor, key: Tensor) -> Tensor:
    return 4 * (query @ key) / (query.norm() * key.norm())


def scoring(attend: Callable[..., Tensor], score: Callable[..., Tensor], n_query: int) -> Case:
    """Make a case whose weights are the softmax of scores, each computed for one pair alone."""

    def make() -> tuple[nn.Module, tuple[Any, ...]]:
        torch.manual_seed(0)
        return Scoring(attend, score), (torch.randn(2, 3, SIZE), torch.randn(2, LENGTH, SIZE))

    def expected(model: nn.Module, args: tuple[Any, ...]) -> list[np.ndarray]:
        assert isinstance(model, Scoring)
        query, key = args
        scores = np.array(
            [
                [[float(model.score(model, q, k)) for k in keys] for q in queries[:n_query]]
                for queries, keys in zip(query, key, strict=True)
            ]
        )
        return [softmax_rows(scores)[:, None]]

    return Case(make, expected)


PAIRS = {
    "query and key concatenated": scoring(concatenated, by_mlp, 3),
    "one step of a decoder": scoring(one_step, by_mlp, 1),
    "a graph's": scoring(graph, of_each, 3),
    "time first": scoring(time_first, generally, 1),
    "time first, by einsum": scoring(time_first_by_einsum, generally, 1),
    "cosine similarity": scoring(cosine, angle, 3),
}
