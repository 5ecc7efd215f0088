"""Attention whose axes take a detour, and weights that a model changes before it uses them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.capture.plain_torch.case import BATCH, HEADS, LENGTH, SIZE, Attending, Case, attending

ROOT = math.sqrt(SIZE)
LONGER = (LENGTH, 9)


def _weights(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT / ROOT).softmax(-1)


def values_without_heads(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("nhid,njd->nhij", q, k[:, 0]) / ROOT
    return torch.einsum("nhij,njd->nhid", scores.softmax(-1), v[:, 0])


def tokens_before_heads(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("thid,tjd->tihj", q, k[:, 0]) / ROOT
    return torch.einsum("tihj,tjd->thid", scores.softmax(-1), v[:, 0])


def groups_by_einsum(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bkrid,bkjd->bkrij", q.unflatten(1, (2, 2)), k) / ROOT
    return torch.einsum("bkrij,bkjd->bkrid", scores.softmax(-1), v).flatten(1, 2)


def groups_by_broadcasting(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (_weights(q.unflatten(1, (2, 2)), k[:, :, None]) @ v[:, :, None]).flatten(1, 2)


def groups_behind_queries(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bkrid,bkjd->bikrj", q.unflatten(1, (2, 2)), k) / ROOT
    out = torch.einsum("bikrj,bkjd->bikrd", scores.softmax(-1), v)
    return out.flatten(2, 3).transpose(1, 2)


def heads_ahead_of_batch(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("nhid,nhjd->hnij", q, k) / ROOT
    return torch.einsum("hnij,nhjd->nhid", scores.softmax(-1), v)


def folded_heads_first(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    folded = _weights(q, k).transpose(0, 1).reshape(HEADS * BATCH, LENGTH, -1)
    out = folded.bmm(v.transpose(0, 1).flatten(0, 1))
    return out.unflatten(0, (HEADS, BATCH)).transpose(0, 1)


def keys_on_a_grid(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    key, value = (t.unflatten(2, (3, -1)) for t in (k, v))
    scores = torch.einsum("nhid,nhuvd->nhiuv", q, key) / ROOT
    weights = scores.flatten(3).softmax(-1).view_as(scores)
    return torch.einsum("nhiuv,nhuvd->nhid", weights, value)


def in_pieces_again(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.stack(list((q @ k.mT / ROOT).unbind(1)), dim=1)
    early, late = scores.softmax(-1).tensor_split(2, dim=2)
    return torch.cat([early @ v, late @ v], dim=2)


def keys_joined(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    parts = [q @ part.mT / ROOT for part in k.split(4, dim=2)]
    return torch.cat(parts, dim=-1).softmax(-1) @ v


def three_factors(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    back = torch.eye(SIZE).expand(HEADS, -1, -1)
    return torch.einsum("nhij,nhjd,hde->nhie", _weights(q, k), v, back)


def raised_over_own_sum(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raised = torch.pow(math.e, q @ k.mT / ROOT)
    return torch.einsum("nhij,nhjd,nhi->nhid", raised, v, 1 / raised.sum(-1))


def ones_beside_values(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    both = (q @ k.mT / ROOT).exp() @ F.pad(v, (0, 1), value=1.0)
    return both[..., :SIZE] / both[..., SIZE:]


def least_first(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.softmin(q @ k.mT / -ROOT, dim=-1) @ v


def below_python(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.ops.aten.softmax.int(q @ k.mT / ROOT, -1) @ v


def matrix_functions(
    scores: Callable[[Tensor, Tensor], Tensor], output: Callable[[Tensor, Tensor], Tensor]
) -> Callable[..., Tensor]:
    """Attend by functions of matrices, one head of one sequence."""

    def attend(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (scores(q[0, 0], k[0, 0]) / ROOT).softmax(-1)
        return output(weights, v[0, 0]).expand(BATCH, HEADS, -1, -1)

    return attend


def _first(case: Case) -> Case:
    def expected(model: nn.Module, args: tuple[Any, ...]) -> list[np.ndarray]:
        return [case.expected(model, args)[0][:1, :1]]

    return Case(case.make, expected)


def _zeros(rows: int, columns: int) -> Tensor:
    return torch.zeros(rows, columns)


MATRICES = {
    "addmm": matrix_functions(
        lambda q, k: torch.addmm(_zeros(LENGTH, LENGTH), q, k.t()),
        lambda w, v: torch.addmm(_zeros(LENGTH, SIZE), w, v),
    ),
    "linear": matrix_functions(F.linear, lambda w, v: F.linear(w, v.t())),
    "tensordot": matrix_functions(
        lambda q, k: torch.tensordot(q, k, dims=([1], [1])),
        lambda w, v: torch.tensordot(w, v, dims=1),
    ),
    "inner": matrix_functions(torch.inner, torch.mm),
    "multi_dot": matrix_functions(
        lambda q, k: torch.linalg.multi_dot([q, torch.eye(SIZE), k.t()]),
        lambda w, v: torch.linalg.multi_dot([w, v]),
    ),
}


def changed(change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """Attend, and change the weights before the values."""
    return lambda m, q, k, v: change(_weights(q, k)) @ v


def _dropped_by_hand(w: Tensor) -> Tensor:
    return w * torch.bernoulli(torch.full_like(w, 0.6)) / 0.6


CHANGED = {
    "scaled by a constant": lambda w: w * 0.5,
    "rounded to half": lambda w: w.half().float(),
    "less what is uniform": lambda w: w - 1 / LENGTH,
    "dropped by hand": _dropped_by_hand,
    "dropped by a comparison": lambda w: w.masked_fill(torch.rand_like(w) < 0.5, 0.0) * 2,
    "dropped in place": lambda w: F.dropout(w, 0.5, training=True, inplace=True),
    "dropped natively": lambda w: torch.native_dropout(w, 0.5, True)[0],
    "gated": lambda w: w * w.detach().amax(-1, keepdim=True).sigmoid(),
}


def _as_used(case: Case, change: Callable[[np.ndarray], np.ndarray]) -> Case:
    def expected(model: nn.Module, args: tuple[Any, ...]) -> list[np.ndarray]:
        return [change(weights) for weights in case.expected(model, args)]

    return Case(case.make, expected)


def _hidden(w: Tensor) -> Tensor:
    return w * torch.ones(LENGTH, LENGTH).tril()


def off_by_one(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raised = (q @ k.mT / ROOT).exp()
    return raised / (1 + raised.sum(-1, keepdim=True)) @ v


def differential(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (_weights(q, k) - 0.3 * _weights(q, q)) @ v


def _and_its_noise(case: Case) -> Case:
    def expected(model: nn.Module, args: tuple[Any, ...]) -> list[np.ndarray]:
        assert isinstance(model, Attending)
        query = model.last[0]
        return [*case.expected(model, args), _weights(query, query).detach().double().numpy()]

    return Case(case.make, expected)


def _share_of_one(case: Case) -> Case:
    def expected(model: nn.Module, args: tuple[Any, ...]) -> list[np.ndarray]:
        assert isinstance(model, Attending)
        query, key = (tensor.detach().double().numpy() for tensor in model.last)
        raised = np.exp(np.einsum("bhid,bhjd->bhij", query, key) / ROOT)
        return [raised / (1 + raised.sum(-1, keepdims=True))]

    return Case(case.make, expected)


AXES = {
    "values without heads": attending(values_without_heads, kv_heads=1),
    "tokens before heads": attending(tokens_before_heads, kv_heads=1),
    "groups by einsum": attending(groups_by_einsum, kv_heads=2),
    "groups by broadcasting": attending(groups_by_broadcasting, kv_heads=2),
    "groups behind queries": attending(groups_behind_queries, kv_heads=2),
    "heads ahead of the batch": attending(heads_ahead_of_batch, lengths=LONGER),
    "folded, heads first": attending(folded_heads_first, lengths=LONGER),
    "keys on a grid": attending(keys_on_a_grid, lengths=LONGER),
    "in pieces again": attending(in_pieces_again, lengths=LONGER),
    "scores joined along the keys": attending(keys_joined, lengths=LONGER),
    "three factors": attending(three_factors, lengths=LONGER),
    "raised, over its own sum": attending(raised_over_own_sum, lengths=LONGER),
    "ones beside the values": attending(ones_beside_values, lengths=LONGER),
    "softmin": attending(least_first, lengths=LONGER),
    "an operator below Python": attending(below_python, lengths=LONGER),
    "off by one": _share_of_one(attending(off_by_one)),
    "differential": _and_its_noise(attending(differential)),
    "hidden behind the softmax": _as_used(attending(changed(_hidden)), np.tril),
    **{name: _first(attending(attend)) for name, attend in MATRICES.items()},
    **{name: attending(changed(change), train=True) for name, change in CHANGED.items()},
}
