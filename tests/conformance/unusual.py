"""Correct implementations that go about it in unusual ways: none of them may fail either."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conformance.implementations import Implementation, bias_of, repeat_heads

__all__ = ["UNUSUAL"]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _factor(query: Tensor, scale: Any) -> float:
    return float(query.shape[-1] ** -0.5 if scale is None else scale)


def _normalised(scores: Tensor) -> Tensor:
    empty = (scores == -torch.inf).all(-1, keepdim=True)
    return torch.softmax(scores.masked_fill(empty, 0), -1).masked_fill(empty, 0)


def flattened(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: Any = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """All leading axes in one, `baddbmm` with the mask as its first summand."""
    key, value = repeat_heads(query, key, value, enable_gqa)
    lead, factor = query.shape[:-2], _factor(query, scale)
    bias = bias_of(query, key, attn_mask, is_causal, query.dtype)
    n_query, n_key = query.shape[-2], key.shape[-2]
    bias = bias.expand(*lead, n_query, n_key).reshape(math.prod(lead), n_query, n_key)
    q, k, v = (x.reshape(math.prod(lead), *x.shape[-2:]) for x in (query, key, value))
    weights = _normalised(torch.baddbmm(bias, q * factor, k.mT))
    return torch.bmm(F.dropout(weights, dropout_p), v).reshape(*lead, n_query, v.shape[-1])


def by_log_sum(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    is_causal: bool = False, scale: Any = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Weights as exp(score - logsumexp), in float32 at least."""
    key, value = repeat_heads(query, key, value, enable_gqa)
    wide = _wide(query.dtype)
    scores = query.to(wide) @ key.to(wide).mT * _factor(query, scale)
    scores = scores + bias_of(query, key, attn_mask, is_causal, wide)
    empty = (scores == -torch.inf).all(-1, keepdim=True)
    total = torch.logsumexp(scores.masked_fill(empty, 0), -1, keepdim=True)
    weights = torch.exp(scores.masked_fill(empty, -torch.inf) - total)
    return (weights @ value.to(wide)).to(query.dtype)


def by_merged_log_sums(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    is_causal: bool = False, scale: Any = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Keys in two splits, merged by their log-sum-exp, as decoding kernels do."""
    key, value = repeat_heads(query, key, value, enable_gqa)
    wide, half = _wide(query.dtype), key.shape[-2] // 2
    scores = query.to(wide) @ key.to(wide).mT * _factor(query, scale)
    scores = scores + bias_of(query, key, attn_mask, is_causal, wide)
    outputs, sums = [], []
    for part in (slice(0, half), slice(half, None)):
        empty = (scores[..., part] == -torch.inf).all(-1, keepdim=True)
        total = torch.logsumexp(scores[..., part].masked_fill(empty, 0), -1, keepdim=True)
        sums.append(total.masked_fill(empty, -torch.inf))
        outputs.append(_normalised(scores[..., part]) @ value[..., part, :].to(wide))
    shares = _normalised(torch.cat(sums, -1))
    return (outputs[0] * shares[..., :1] + outputs[1] * shares[..., 1:]).to(query.dtype)


def by_query_blocks(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: Any = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Blocks of 48 queries; with causality only the keys that a block may see are read."""
    key, value = repeat_heads(query, key, value, enable_gqa)
    bias = bias_of(query, key, attn_mask, is_causal, query.dtype)
    bias = bias.expand(*bias.shape[:-2], query.shape[-2], key.shape[-2])
    parts = [query.new_zeros((*query.shape[:-2], 0, value.shape[-1]))]
    for start in range(0, query.shape[-2], 48):
        rows = query[..., start : start + 48, :]
        seen = min(start + 48, key.shape[-2]) if is_causal else key.shape[-2]
        scores = (rows * _factor(query, scale)) @ key[..., :seen, :].mT
        weights = _normalised(scores + bias[..., start : start + 48, :seen])
        parts.append(F.dropout(weights, dropout_p) @ value[..., :seen, :])
    return torch.cat(parts, -2)


def base_two(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    is_causal: bool = False, scale: Any = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Powers of two, log2(e) multiplied into the query; values summed before dividing."""
    key, value = repeat_heads(query, key, value, enable_gqa)
    wide, base = _wide(query.dtype), math.log2(math.e)
    scores = (query.to(wide) * (_factor(query, scale) * base)) @ key.to(wide).mT
    bias = bias_of(query, key, attn_mask, is_causal, wide)
    lowest = torch.finfo(wide).min
    bias = torch.where(bias.isinf(), bias, (bias * base).clamp_min(lowest))  # never -inf by base
    scores = scores + bias
    peak = scores.amax(-1, keepdim=True) if key.shape[-2] else scores.sum(-1, keepdim=True)
    powers = torch.exp2(scores - peak.masked_fill(peak == -torch.inf, 0).detach())
    total = powers.sum(-1, keepdim=True)
    return (powers @ value.to(wide) / total.masked_fill(total == 0, 1)).to(query.dtype)


def one_head_mapped(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    is_causal: bool = False, scale: Any = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """One head in two dimensions, mapped over the others by `torch.func.vmap`."""
    key, value = repeat_heads(query, key, value, enable_gqa)
    lead = query.shape[:-2]
    if 0 in lead:
        raise NotImplementedError("vmap has no empty axes")
    bias = bias_of(query, key, attn_mask, is_causal, query.dtype)
    bias = bias.expand(*lead, query.shape[-2], key.shape[-2])
    factor = _factor(query, scale)

    def one(q: Tensor, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
        return _normalised(q @ k.mT * factor + b) @ v

    mapped: Callable[..., Tensor] = one
    for _ in lead:
        mapped = torch.func.vmap(mapped)
    return mapped(query, key, value, bias)


def grouped_by_shape(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: Any = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Grouped heads by an axis of their own that key and value broadcast over."""
    bias = bias_of(query, key, attn_mask, is_causal, query.dtype)
    if enable_gqa and key.shape[-3]:
        group = query.shape[-3] // key.shape[-3]
        bias = bias.expand(*query.shape[:-1], key.shape[-2]).unflatten(-3, (-1, group))
        query = query.unflatten(-3, (-1, group))
        key, value = key.unsqueeze(-3), value.unsqueeze(-3)
    weights = _normalised(query @ key.mT * _factor(query, scale) + bias)
    output = F.dropout(weights, dropout_p) @ value
    return output.flatten(-4, -3) if enable_gqa and key.shape[-3] else output


def softmax_in_float32(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: Any = None, enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As most models have it: products in the inputs' dtype, the softmax alone in float32."""
    key, value = repeat_heads(query, key, value, enable_gqa)
    scores = query @ key.mT * _factor(query, scale)
    scores = scores + bias_of(query, key, attn_mask, is_causal, query.dtype)
    weights = _normalised(scores.to(_wide(query.dtype))).to(query.dtype)
    return F.dropout(weights, dropout_p) @ value, weights


def by_halves(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    is_causal: bool = False, scale: Any = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Keys in halves, down to 32, merged as a tree by their log-sum-exp (as in ring attention)."""
    key, value = repeat_heads(query, key, value, enable_gqa)
    wide = _wide(query.dtype)
    scores = (query.to(wide) * _factor(query, scale)) @ key.to(wide).mT
    scores = scores + bias_of(query, key, attn_mask, is_causal, wide)
    values = value.to(wide)

    def part(start: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        if end - start <= 32:
            piece = scores[..., start:end]
            peak = piece.amax(-1, keepdim=True) if end > start else piece.sum(-1, keepdim=True)
            powers = torch.exp(piece - peak.masked_fill(peak == -torch.inf, 0))
            return powers @ values[..., start:end, :], powers.sum(-1, keepdim=True), peak
        middle = (start + end) // 2
        (a, m, p), (b, n, r) = part(start, middle), part(middle, end)
        peak = torch.maximum(p, r)
        safe = peak.masked_fill(peak == -torch.inf, 0)
        first, second = torch.exp(p - safe), torch.exp(r - safe)
        return a * first + b * second, m * first + n * second, peak

    output, total, _ = part(0, key.shape[-2])
    return (output / total.masked_fill(total == 0, 1)).to(query.dtype)


def padded(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: Any = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Heads padded to 16, keys to 32 (and hidden), queries to 8 (and cut off)."""
    key, value = repeat_heads(query, key, value, enable_gqa)
    factor, n_query, size = _factor(query, scale), query.shape[-2], value.shape[-1]
    bias = bias_of(query, key, attn_mask, is_causal, query.dtype)
    bias = bias.expand(*bias.shape[:-2], n_query, key.shape[-2])
    rows, columns = -n_query % 8, -key.shape[-2] % 32
    bias = F.pad(F.pad(bias, (0, columns), value=-torch.inf), (0, 0, 0, rows))
    q = F.pad(query, (0, -query.shape[-1] % 16, 0, rows))
    k = F.pad(key, (0, -key.shape[-1] % 16, 0, columns))
    v = F.pad(value, (0, -size % 16, 0, columns))
    weights = _normalised(q @ k.mT * factor + bias)
    return (F.dropout(weights, dropout_p) @ v)[..., :n_query, :size]


class _Recomputed(torch.autograd.Function):
    """Keeps the log-sum-exp, and computes the weights again on the way back."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, factor: float) -> Tensor:
        scores = q @ k.mT * factor + bias
        lse = torch.logsumexp(scores, -1, keepdim=True) if k.shape[-2] else scores.sum(-1, True)
        lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # an empty row: weights of zero
        lse = lse if k.shape[-2] else torch.full_like(lse, torch.inf)
        output = torch.exp(scores - lse) @ v
        ctx.save_for_backward(q, k, v, bias, lse, output)
        ctx.factor = factor
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, bias, lse, output = ctx.saved_tensors
        weights = torch.exp(q @ k.mT * ctx.factor + bias - lse)
        inner = weights * (grad @ v.mT - (grad * output).sum(-1, keepdim=True))
        return (
            inner @ k * ctx.factor,
            inner.mT @ q * ctx.factor,
            weights.mT @ grad,
            inner.sum_to_size(bias.shape),
            None,
        )


def recomputing(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    is_causal: bool = False, scale: Any = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """A backward pass as flash kernels have it, in float32 for half precision."""
    key, value = repeat_heads(query, key, value, enable_gqa)
    wide = _wide(query.dtype)
    bias = bias_of(query, key, attn_mask, is_causal, wide)
    three = (x.to(wide) for x in (query, key, value))
    found: Tensor = _Recomputed.apply(*three, bias, _factor(query, scale))
    return found.to(query.dtype)


LOG_SUM: Final = {"mask-lowest-rows": "finfo.min + log(n) is finfo.min: the sum of the values"}

UNUSUAL: Final[Mapping[str, Implementation]] = MappingProxyType(
    {
        "flattened, baddbmm": Implementation(flattened),
        "exp of score minus log-sum": Implementation(by_log_sum, known=LOG_SUM),
        "splits merged by log-sum": Implementation(by_merged_log_sums),
        "blocks of queries": Implementation(by_query_blocks),
        "powers of two": Implementation(base_two),
        "one head, vmap": Implementation(one_head_mapped),
        "groups by shape": Implementation(grouped_by_shape),
        "softmax in float32": Implementation(softmax_in_float32, returns_weights=True),
        "halves of keys": Implementation(by_halves),
        "padded": Implementation(padded),
        "recomputing backward": Implementation(recomputing, known=LOG_SUM),
    }
)
"""By name."""
