"""Softmax attention written by hand, as people spell it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.capture.plain_torch.case import HEADS, LENGTH, SIZE, Attending, Case, attending, past
from tests.capture.plain_torch.sdpa_cases import FIVE, band, distance, distances, padded, table

ROOT = math.sqrt(SIZE)


def _triangle() -> Tensor:
    return torch.ones(LENGTH, LENGTH).tril().bool()


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2) / ROOT


def matmul(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.matmul(torch.softmax(torch.matmul(q, k.mT) / ROOT, -1), v)


def operators(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * SIZE**-0.5).softmax(dim=-1) @ v


def query_scaled(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.softmax((q / ROOT) @ k.mT, dim=-1) @ v


def as_module(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights: Tensor = m.softmax(_scores(q, k))
    return weights @ v


def einsum(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bhid,bhjd->bhij", q, k).div(ROOT).softmax(-1)
    return torch.einsum("bhij,bhjd->bhid", weights, v)


def einsum_dots(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("...id,...jd->...ij", q, k).div(ROOT).softmax(-1)
    return torch.einsum("...ij,...jd->...id", weights, v)


def einsum_implicit(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("...id,...jd", q, k).div(ROOT).softmax(-1)
    return torch.einsum("...ij,...jz", weights, v)


def einsum_lists(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum(q, [0, 1, 2, 4], k, [0, 1, 3, 4], [0, 1, 2, 3]).div(ROOT).softmax(-1)
    return torch.einsum(weights, [0, 1, 2, 3], v, [0, 1, 3, 4], [0, 1, 2, 4])


def length_first(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    weights = torch.einsum("bihd,bjhd->bhij", q, k).div(ROOT).softmax(-1)
    return torch.einsum("bhij,bjhd->bihd", weights, v).transpose(1, 2)


def bmm(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    weights = F.softmax(torch.bmm(q, k.transpose(1, 2)) / ROOT, dim=-1)
    return torch.bmm(weights, v).unflatten(0, (-1, HEADS))


def by_name(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.div(other=ROOT, input=torch.matmul(other=k.mT, input=q))
    return torch.matmul(input=torch.softmax(input=scores, dim=-1), other=v)


def bmm_by_name(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    turned = torch.transpose(input=k, dim0=1, dim1=2)
    weights = F.softmax(input=torch.bmm(input=q, mat2=turned) / ROOT, dim=-1)
    return torch.bmm(input=weights, mat2=v).unflatten(0, (-1, HEADS))


def exp_and_sum_by_name(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raised = torch.exp(input=_scores(q, k))
    return torch.div(input=raised, other=torch.sum(input=raised, dim=-1, keepdim=True)) @ v


def masked_by_name(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    low = torch.tensor(-1e9)
    scores = torch.where(condition=_triangle(), input=_scores(q, k), other=low)
    return torch.softmax(input=scores, dim=-1) @ v


def joined_by_name(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.cat(tensors=[_scores(q[:, :2], k[:, :2]), _scores(q[:, 2:], k[:, 2:])], dim=1)
    return scores.softmax(-1) @ v


def complex_values(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = _scores(q, k).softmax(-1).to(torch.complex64)
    return (weights @ torch.complex(v, v)).real


def baddbmm(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    empty = torch.empty(q.shape[0], q.shape[1], k.shape[1])
    scores = torch.baddbmm(empty, q, k.transpose(1, 2), beta=0, alpha=1 / ROOT)
    return torch.bmm(scores.softmax(-1), v).unflatten(0, (-1, HEADS))


def baddbmm_bias(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    bias = distances().repeat(2, 1, 1)
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), beta=1.0, alpha=1 / ROOT)
    return torch.bmm(scores.softmax(-1), v).unflatten(0, (-1, HEADS))


def exp_and_sum(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = _scores(q, k)
    raised = (scores - scores.amax(-1, keepdim=True)).exp()
    return (raised / raised.sum(-1, keepdim=True)) @ v


def exp_divided_late(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raised = torch.exp(_scores(q, k))
    return (raised @ v) / raised.sum(-1, keepdim=True)


def log_softmax(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.exp(F.log_softmax(_scores(q, k), dim=-1)) @ v


def logsumexp(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = _scores(q, k)
    return (scores - scores.logsumexp(-1, keepdim=True)).exp() @ v


def masked_fill(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _scores(q, k).masked_fill(~_triangle(), -math.inf).softmax(-1) @ v


def masked_fill_inplace(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT
    scores *= 1 / ROOT
    scores.masked_fill_(~_triangle(), torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ v


def where(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.where(_triangle(), _scores(q, k), torch.tensor(-math.inf)).softmax(-1) @ v


def added_mask(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    hidden = (1.0 - table(padded)[:, :1, :1].float()) * -10000.0
    return (_scores(q, k) + hidden).softmax(-1) @ v


def band_added(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    hidden = torch.full((LENGTH, LENGTH), -math.inf).masked_fill(table(band)[0, 0], 0)
    return (_scores(q, k) + hidden).softmax(-1) @ v


def alibi(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (_scores(q, k) + distances()).softmax(-1) @ v


def dropped(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights: Tensor = m.drop(_scores(q, k).softmax(-1))
    return weights @ v


def dropped_inplace(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.dropout(_scores(q, k).softmax(-1), 0.3, training=m.training) @ v


def half_softmax(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = F.softmax(_scores(q, k), dim=-1, dtype=torch.float32).to(q.dtype)
    return weights @ v


def key_major(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (k @ q.mT / ROOT).softmax(dim=-2)
    return (v.mT @ weights).mT


def weights_transposed(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = _scores(q, k).softmax(-1)
    return (v.mT @ weights.mT).mT


def repeated_keys(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
    return _scores(q, k).softmax(-1) @ v


def grouped(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q = q.unflatten(1, (2, 2))
    weights = (q @ k[:, :, None].mT / ROOT).softmax(-1)
    return (weights @ v[:, :, None]).flatten(1, 2)


def softcapped(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (torch.tanh(_scores(q, k) / 0.5) * 0.5).softmax(-1) @ v


def cosine(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    return (q @ k.mT * 10).softmax(-1) @ v


def one_head_at_a_time(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads = [_scores(q[:, h], k[:, h]).softmax(-1) @ v[:, h] for h in range(HEADS)]
    return torch.stack(heads, dim=1)


def with_sink(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.cat([_scores(q, k), torch.zeros(*q.shape[:3], 1)], dim=-1)
    return scores.softmax(-1)[..., :-1] @ v


WRITTEN: dict[str, Case] = {
    function.__name__: attending(function)
    for function in (
        *(matmul, operators, query_scaled, as_module, einsum, einsum_dots, einsum_lists),
        *(einsum_implicit, length_first, bmm, baddbmm, exp_and_sum, exp_divided_late, log_softmax),
        *(complex_values, by_name, bmm_by_name, exp_and_sum_by_name, joined_by_name),
        *(logsumexp, half_softmax, key_major, weights_transposed),
    )
} | {
    "masked_fill": attending(masked_fill, sees=past),
    "masked_fill in place": attending(masked_fill_inplace, sees=past),
    "where": attending(where, sees=past),
    "where by name": attending(masked_by_name, sees=past),
    "added padding": attending(added_mask, sees=padded),
    "added band": attending(band_added, sees=band),
    "alibi": attending(alibi, bias=distance),
    "baddbmm with bias": attending(baddbmm_bias, bias=distance),
    "dropout while training": attending(dropped, train=True),
    "functional dropout while training": attending(dropped_inplace, train=True),
    "dropout module in eval": attending(dropped),
    "repeated keys": attending(repeated_keys, kv_heads=2),
    "grouped": attending(grouped, kv_heads=2),
    "cross": attending(matmul, lengths=(LENGTH, FIVE)),
    "bfloat16": attending(half_softmax, dtype=torch.bfloat16, atol=0.02),
}
