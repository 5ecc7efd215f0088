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
    Attending,
    Case,
    attending,
    past,
)
from tests.capture.plain_torch.sdpa_cases import distance, distances

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


def vectors(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One query at a time, as a decoder loop has it."""
    rows = [(q[:, :, i : i + 1] @ k.mT / ROOT).softmax(-1) @ v for i in range(LENGTH)]
    return torch.cat(rows, dim=2)


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
}
