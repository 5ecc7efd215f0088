"""Softmax attention over other scores than a scaled product of query and key."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.capture.plain_torch.case import (
    BATCH,
    HEADS,
    LENGTH,
    SIZE,
    Attend,
    Attending,
    Case,
    attending,
    inputs,
)
from tests.capture.reference import reference_weights, softmax_rows

ROOT = math.sqrt(SIZE)


def normed(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Normalised query and key, as many recent models have them."""
    q, k = (t * t.square().mean(-1, keepdim=True).rsqrt() for t in (q, k))
    return (q @ k.mT / ROOT).softmax(-1) @ v


def by_distance(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A Gaussian kernel: minus half the squared distance."""
    squares = (q[:, :, :, None] - k[:, :, None]).square().sum(-1)
    return squares.mul(-0.5).softmax(-1) @ v


def by_cdist(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.cdist(q, k).square().mul(-0.5).softmax(-1) @ v


def additive(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Bahdanau's: a layer over the sum of query and key."""
    pairs = torch.tanh(q[:, :, :, None] + k[:, :, None])
    return m.to_one(pairs).squeeze(-1).softmax(-1) @ v


def additive_sum(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    pairs = F.leaky_relu(q.unsqueeze(3) + k.unsqueeze(2), 0.2)
    return (pairs * m.to_one.weight).sum(-1).softmax(-1) @ v


def additive_vector(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    pairs = torch.tanh(q.unsqueeze(3) + k.unsqueeze(2))
    return torch.matmul(pairs, m.to_one.weight[0]).softmax(-1) @ v


def of_one_query(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A decoder's step: one query beside the sequence, values summed element by element."""
    steps = []
    for i in range(LENGTH):
        query = q[:, :, i : i + 1].flatten(0, 1)
        scores = m.to_one(torch.tanh(query + k.flatten(0, 1)))
        steps.append((scores.softmax(1) * v.flatten(0, 1)).sum(1, keepdim=True))
    return torch.cat(steps, 1).unflatten(0, (BATCH, HEADS))


def bilinear(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    pairs = (*q.shape[:3], k.shape[2], SIZE)
    scores = m.form(q.unsqueeze(3).expand(pairs), k.unsqueeze(2).expand(pairs))
    return scores.squeeze(-1).softmax(-1) @ v


class Bilinear(Attending):
    """Attention with a bilinear form of query and key."""

    def __init__(self, attend: Attend) -> None:
        super().__init__(attend)
        self.form = nn.Bilinear(SIZE, SIZE, 1)


def formed() -> Case:
    """Make a case of attention by a bilinear form."""

    def make() -> tuple[nn.Module, tuple[Any, ...]]:
        torch.manual_seed(0)
        return Bilinear(bilinear), inputs()

    def expected(model: nn.Module, args: tuple[Any, ...]) -> list[np.ndarray]:
        assert isinstance(model, Bilinear)
        query, key = (tensor.detach().double().numpy() for tensor in model.last)
        form = model.form.weight.detach().double().numpy()[0]
        scores = query @ form @ np.swapaxes(key, -1, -2) + float(model.form.bias.detach())
        return [softmax_rows(scores)]

    return Case(make, expected)


class Additive(Attending):
    """Attention with a layer that makes one score of a pair's features."""

    def __init__(self, attend: Attend) -> None:
        super().__init__(attend)
        self.to_one = nn.Linear(SIZE, 1, bias=False)


def added(attend: Attend, squash: Callable[[np.ndarray], np.ndarray], steps: int = 1) -> Case:
    """Make a case of additive attention; with steps, of one layer per query."""

    def make() -> tuple[nn.Module, tuple[Any, ...]]:
        torch.manual_seed(0)
        return Additive(attend), inputs()

    def expected(model: nn.Module, args: tuple[Any, ...]) -> list[np.ndarray]:
        assert isinstance(model, Additive)
        query, key = (tensor.detach().double().numpy() for tensor in model.last)
        vector = model.to_one.weight.detach().double().numpy()[0]
        scores = squash(query[:, :, :, None] + key[:, :, None]) @ vector
        return np.split(softmax_rows(scores), steps, axis=2)

    return Case(make, expected)


def _kernel(case: Case) -> Case:
    """Expect a Gaussian kernel of the distance of query and key."""

    def expected(model: nn.Module, args: tuple[Any, ...]) -> list[np.ndarray]:
        assert isinstance(model, Attending)
        query, key = (tensor.detach().double().numpy() for tensor in model.last)
        scores = -0.5 * np.square(query[:, :, :, None] - key[:, :, None]).sum(-1)
        return [softmax_rows(scores)]

    return Case(case.make, expected)


def _normed(case: Case) -> Case:
    def expected(model: nn.Module, args: tuple[Any, ...]) -> list[np.ndarray]:
        assert isinstance(model, Attending)
        query, key = (t / t.square().mean(-1, keepdim=True).sqrt() for t in model.last)
        return [reference_weights(query, key)]

    return Case(case.make, expected)


SCORES: dict[str, Case] = {
    "additive": added(additive, np.tanh),
    "additive, summed": added(additive_sum, lambda x: np.where(x > 0, x, 0.2 * x)),
    "additive, by a vector": added(additive_vector, np.tanh),
    "bilinear": formed(),
    "additive, query by query": added(of_one_query, np.tanh, steps=LENGTH),
    "by distance": _kernel(attending(by_distance)),
    "by cdist": _kernel(attending(by_cdist)),
    "query and key normalised": _normed(attending(normed)),
}


class Talking(Attending):
    """Attention whose heads are mixed by a layer, before or after the softmax."""

    def __init__(self, attend: Attend) -> None:
        super().__init__(attend)
        self.mix = nn.Linear(HEADS, HEADS, bias=False)
        self.one = nn.Conv2d(HEADS, HEADS, 1, bias=False)
        self.one.weight.data = self.mix.weight.data[:, :, None, None]


def by_linear(m: Talking, x: Tensor) -> Tensor:
    mixed: Tensor = m.mix(x.permute(0, 2, 3, 1))
    return mixed.permute(0, 3, 1, 2)


def by_einsum(m: Talking, x: Tensor) -> Tensor:
    return torch.einsum("bhij,gh->bgij", x, m.mix.weight)


def by_convolution(m: Talking, x: Tensor) -> Tensor:
    mixed: Tensor = m.one(x)
    return mixed


def talking(mix: Callable[[Talking, Tensor], Tensor], *, before: bool) -> Case:
    """Make a case of talking heads; its weights are those of the softmax."""

    def attend(m: Talking, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.mT / ROOT
        weights = (mix(m, scores) if before else scores).softmax(-1)
        return (weights if before else mix(m, weights)) @ v

    def make() -> tuple[nn.Module, tuple[Any, ...]]:
        torch.manual_seed(0)
        return Talking(attend), inputs()

    def expected(model: nn.Module, args: tuple[Any, ...]) -> list[np.ndarray]:
        assert isinstance(model, Talking)
        query, key = (tensor.detach().double().numpy() for tensor in model.last)
        scores = np.einsum("bhid,bhjd->bhij", query, key) / ROOT
        if before:
            scores = np.einsum("bhij,gh->bgij", scores, model.mix.weight.detach().double().numpy())
        return [softmax_rows(scores)]

    return Case(make, expected)


SCORES |= {
    f"talking heads {mix.__name__} {'before' if before else 'after'}": talking(mix, before=before)
    for mix in (by_linear, by_einsum, by_convolution)
    for before in (True, False)
}
