"""Softmax attention in spellings that are rarely seen, and yet compute it."""

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
    past,
)
from tests.capture.plain_torch.sdpa_cases import distance, distances
from tests.capture.reference import reference_weights

ROOT = math.sqrt(SIZE)
TRIANGLE = torch.ones(LENGTH, LENGTH).tril().bool()


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT / ROOT


def transposed_einsum(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys before queries, softmax along the second to last axis."""
    weights = torch.einsum("bhjd,bhid->bhji", k, q).div(ROOT).softmax(2)
    return torch.einsum("bhjd,bhji->bhid", v, weights)


def heads_last(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    weights = torch.einsum("bihd,bjhd->bijh", q, k).div(ROOT).softmax(2)
    return torch.einsum("bijh,bjhd->bhid", weights, v)


def softmax_first_axis(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (k @ q.mT / ROOT).permute(2, 0, 1, 3)
    weights = scores.softmax(0).permute(1, 2, 3, 0)
    return weights @ v


def channels_first(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As convolutional models have it: values are features by positions."""
    q, k, v = (t.flatten(0, 1).mT for t in (q, k, v))
    weights = F.softmax(torch.bmm(q.mT, k) / ROOT, dim=2)
    return torch.bmm(v, weights.permute(0, 2, 1)).mT.unflatten(0, (-1, HEADS))


def log_softmax_exp_in_place(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.log_softmax(_scores(q, k), -1).exp_() @ v


def torch_logsumexp(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = _scores(q, k)
    return torch.exp(scores - torch.logsumexp(scores, -1)[..., None]) @ v


def divided_in_place(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raised = _scores(q, k).exp_()
    raised.div_(raised.sum(-1, keepdim=True))
    return raised @ v


def divided_by_operator(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raised = torch.exp(_scores(q, k))
    raised /= raised.sum(-1, keepdim=True)
    return raised @ v


def multiplied_by_inverse(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raised = torch.exp(_scores(q, k))
    return (raised @ v) * raised.sum(-1, keepdim=True).reciprocal()


def normalised(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.normalize(_scores(q, k).exp(), p=1, dim=-1) @ v


def exp2(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raised = torch.exp2(_scores(q, k) * math.log2(math.e))
    return (raised / raised.sum(-1, keepdim=True)) @ v


def masked_after(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax over everything, then hidden keys out, then normalised again."""
    weights = _scores(q, k).softmax(-1).masked_fill(~TRIANGLE, 0.0)
    weights = weights / weights.sum(-1, keepdim=True)
    return weights @ v


def multiplied_mask(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = _scores(q, k).softmax(-1) * TRIANGLE
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-13)
    return weights @ v


def raised_and_masked(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raised = torch.exp(_scores(q, k)) * TRIANGLE
    return (raised / raised.sum(-1, keepdim=True)) @ v


def query_chunks(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A few queries at a time, all keys."""
    parts = [_scores(part, k).softmax(-1) @ v for part in q.split(2, dim=2)]
    return torch.cat(parts, dim=2)


def preallocated(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    scores = torch.empty(q.shape[0], q.shape[1], k.shape[1])
    with torch.no_grad():
        torch.bmm(q, k.mT, out=scores)
    scores.mul_(1 / ROOT)
    return torch.bmm(scores.softmax(-1), v).unflatten(0, (-1, HEADS))


def upcast(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.matmul(q, k.mT).float().mul(1 / ROOT).softmax(-1, dtype=torch.float32)
    return torch.matmul(weights.type_as(v), v)


def baddbmm_into_mask(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    mask = torch.zeros(LENGTH, LENGTH).masked_fill(~TRIANGLE, -math.inf)
    scores = torch.baddbmm(mask[None], q, k.mT, beta=1, alpha=1 / ROOT)
    return torch.bmm(scores.softmax(-1), v).unflatten(0, (-1, HEADS))


def method_baddbmm(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    bias = distances().repeat(BATCH, 1, 1)
    return bias.baddbmm(q, k.mT, alpha=1 / ROOT).softmax(-1).bmm(v).unflatten(0, (-1, HEADS))


def batch_and_head_in_one(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.reshape(-1, *t.shape[2:]) for t in (q, k, v))
    return ((q @ k.mT / ROOT).softmax(-1) @ v).reshape(BATCH, HEADS, LENGTH, SIZE)


def elementwise(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """No matrix product at all."""
    scores = (q[..., :, None, :] * k[..., None, :, :]).sum(-1) / ROOT
    return (scores.softmax(-1)[..., None] * v[..., None, :, :]).sum(-2)


def elementwise_values(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = _scores(q, k).softmax(-1)
    return (weights[..., None] * v[..., None, :, :]).sum(dim=-2)


def elementwise_scores(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.sum(q.unsqueeze(3) * k.unsqueeze(2), dim=-1) / ROOT
    return scores.softmax(-1) @ v


def key_parts(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One softmax; its columns multiply the values part by part."""
    weights = _scores(q, k).softmax(-1)
    return weights[..., :2] @ v[:, :, :2] + weights[..., 2:] @ v[:, :, 2:]


def split_keys(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    first, second = _scores(q, k).softmax(-1).split([1, LENGTH - 1], dim=-1)
    return first @ v[:, :, :1] + second @ v[:, :, 1:]


def joined_keys(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores of two sets of keys under one softmax, as with a cache or global tokens."""
    scores = torch.cat([q @ k[:, :, :4].mT, q @ k[:, :, 4:].mT], -1) / ROOT
    old, new = scores.softmax(-1).tensor_split([4], dim=-1)
    return old @ v[:, :, :4] + new @ v[:, :, 4:]


def sparse_by_top_k(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys under the best `LENGTH` are hidden: none is."""
    scores = _scores(q, k)
    least = scores.topk(LENGTH, dim=-1).values[..., -1:]
    return scores.masked_fill(scores < least, -math.inf).softmax(-1) @ v


def flat_mm(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One matrix at a time, by the function for two dimensions."""
    heads = [
        torch.mm(torch.mm(q[b, h], k[b, h].t()).div_(ROOT).softmax(1), v[b, h])
        for b in range(BATCH)
        for h in range(HEADS)
    ]
    return torch.stack(heads).unflatten(0, (BATCH, HEADS))


def heads_one_by_one(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One softmax for all heads; each head multiplies its own values."""
    weights = _scores(q, k).softmax(-1)
    return torch.stack([weights[:, h] @ v[:, h] for h in range(HEADS)], dim=1)


def heads_unbound(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = m.drop(_scores(q, k).softmax(-1)).unbind(1)
    return torch.stack([w @ x for w, x in zip(weights, v.unbind(1), strict=True)], dim=1)


def queries_one_by_one(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = _scores(q, k).softmax(-1)
    return torch.cat([weights[:, :, i : i + 1] @ v for i in range(LENGTH)], dim=2)


def dropped_elementwise(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = m.drop(_scores(q, k).softmax(-1))
    return (weights.unsqueeze(-1) * v.unsqueeze(2)).sum(3)


def dropped_parts(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    near, far = F.dropout(_scores(q, k).softmax(-1), 0.5, m.training).split(3, dim=-1)
    return near @ v[:, :, :3] + far @ v[:, :, 3:]


def normed(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Normalised query and key, as many recent models have them."""
    q, k = (t * t.square().mean(-1, keepdim=True).rsqrt() for t in (q, k))
    return _scores(q, k).softmax(-1) @ v


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


def vectors(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One query at a time, as a decoder loop has it."""
    rows = [(q[:, :, i : i + 1] @ k.mT / ROOT).softmax(-1) @ v for i in range(LENGTH)]
    return torch.cat(rows, dim=2)


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
        raised = np.exp(scores - scores.max(-1, keepdims=True))
        return [raised / raised.sum(-1, keepdims=True)]

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
        raised = np.exp(scores - scores.max(-1, keepdims=True))
        weights = raised / raised.sum(-1, keepdims=True)
        return np.split(weights, steps, axis=2)

    return Case(make, expected)


ODD: dict[str, Case] = {
    function.__name__: attending(function)
    for function in (
        *(transposed_einsum, heads_last, softmax_first_axis, channels_first, preallocated),
        *(log_softmax_exp_in_place, torch_logsumexp, divided_in_place, divided_by_operator),
        *(multiplied_by_inverse, normalised, exp2, upcast, batch_and_head_in_one),
        *(elementwise, elementwise_values, elementwise_scores, key_parts, split_keys),
        *(joined_keys, sparse_by_top_k, heads_one_by_one, heads_unbound, queries_one_by_one),
    )
} | {
    "additive": added(additive, np.tanh),
    "additive, summed": added(additive_sum, lambda x: np.where(x > 0, x, 0.2 * x)),
    "additive, by a vector": added(additive_vector, np.tanh),
    "bilinear": formed(),
    "heads one by one, dropped": attending(heads_unbound, train=True),
    "dropped, then split": attending(dropped_parts, train=True),
    "dropped, then multiplied": attending(dropped_elementwise, train=True),
    "masked after softmax": attending(masked_after, sees=past),
    "mask multiplied": attending(multiplied_mask, sees=past),
    "raised and masked": attending(raised_and_masked, sees=past),
    "baddbmm into a mask": attending(baddbmm_into_mask, sees=past),
    "baddbmm as a method": attending(method_baddbmm, bias=distance),
    "bfloat16 upcast": attending(upcast, dtype=torch.bfloat16, atol=0.02),
    "float16 upcast": attending(upcast, dtype=torch.float16, atol=0.002),
}


def _layers(case: Case, one_per: Callable[[np.ndarray], list[np.ndarray]]) -> Case:
    """Expect one layer for each part of the weights: whoever attends in a loop attends often."""

    def expected(model: nn.Module, args: tuple[Any, ...]) -> list[np.ndarray]:
        (whole,) = case.expected(model, args)
        return one_per(whole)

    return Case(case.make, expected)


def _each_head(weights: np.ndarray) -> list[np.ndarray]:
    return [weights[b : b + 1, h : h + 1] for b in range(BATCH) for h in range(HEADS)]


def _each_query(weights: np.ndarray) -> list[np.ndarray]:
    return [weights[:, :, i : i + 1] for i in range(LENGTH)]


def _pairs_of_queries(weights: np.ndarray) -> list[np.ndarray]:
    return [weights[:, :, i : i + 2] for i in range(0, LENGTH, 2)]


ODD |= {
    "matrix by matrix": _layers(attending(flat_mm), _each_head),
    "query by query": _layers(attending(vectors), _each_query),
    "queries in chunks": _layers(attending(query_chunks), _pairs_of_queries),
    "additive, query by query": added(of_one_query, np.tanh, steps=LENGTH),
}


def _kernel(case: Case) -> Case:
    """Expect a Gaussian kernel of the distance of query and key."""

    def expected(model: nn.Module, args: tuple[Any, ...]) -> list[np.ndarray]:
        assert isinstance(model, Attending)
        query, key = (tensor.detach().double().numpy() for tensor in model.last)
        scores = -0.5 * np.square(query[:, :, :, None] - key[:, :, None]).sum(-1)
        raised = np.exp(scores - scores.max(-1, keepdims=True))
        return [raised / raised.sum(-1, keepdims=True)]

    return Case(case.make, expected)


def _normed(case: Case) -> Case:
    def expected(model: nn.Module, args: tuple[Any, ...]) -> list[np.ndarray]:
        assert isinstance(model, Attending)
        query, key = (t / t.square().mean(-1, keepdim=True).sqrt() for t in model.last)
        return [reference_weights(query, key)]

    return Case(case.make, expected)


ODD |= {
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
        scores = mix(m, _scores(q, k)) if before else _scores(q, k)
        weights = scores.softmax(-1)
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
        raised = np.exp(scores - scores.max(-1, keepdims=True))
        return [raised / raised.sum(-1, keepdims=True)]

    return Case(make, expected)


ODD |= {
    f"talking heads {mix.__name__} {'before' if before else 'after'}": talking(mix, before=before)
    for mix in (by_linear, by_einsum, by_convolution)
    for before in (True, False)
}
