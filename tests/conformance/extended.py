"""Right and wrong implementations of the extensions."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tests.conformance.implementations import bias_of, repeat_heads

__all__ = ["RIGHT", "WRONG"]


def _attend(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False,
    scale: Any = None, enable_gqa: bool = False, *, score: Callable[[Tensor], Tensor] | None = None,
    hidden: Tensor | None = None, sinks: Tensor | None = None, score_last: bool = False,
) -> Tensor:  # fmt: skip
    k, v = repeat_heads(q, k, v, enable_gqa)
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else float(scale))) @ k.mT
    bias = bias_of(q, k, attn_mask, is_causal, q.dtype)
    if hidden is not None:
        bias = bias.masked_fill(hidden, -torch.inf)
    scores = scores if score is None or score_last else score(scores)
    scores = scores + bias
    scores = score(scores) if score is not None and score_last else scores
    if sinks is not None:
        extra = sinks.to(q.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
        return torch.softmax(torch.cat([scores, extra], -1), -1)[..., :-1] @ v
    empty = (scores == -torch.inf).all(-1, keepdim=True)
    return torch.softmax(scores.masked_fill(empty, 0), -1).masked_fill(empty, 0) @ v


def _distance(q: Tensor, k: Tensor) -> Tensor:
    return torch.arange(k.shape[-2])[None, :] - torch.arange(q.shape[-2])[:, None]


def window(q: Tensor, k: Tensor, v: Tensor, *, window: Any, **f: Any) -> Tensor:
    d = _distance(q, k)
    return _attend(q, k, v, **f, hidden=(d < -window[0]) | (d > window[1]))


def window_off_by_one(q: Tensor, k: Tensor, v: Tensor, *, window: Any, **f: Any) -> Tensor:
    d = _distance(q, k)
    return _attend(q, k, v, **f, hidden=(d <= -window[0]) | (d > window[1]))


def window_right_ignored(q: Tensor, k: Tensor, v: Tensor, *, window: Any, **f: Any) -> Tensor:
    return _attend(q, k, v, **f, hidden=_distance(q, k) < -window[0])


def softcap(q: Tensor, k: Tensor, v: Tensor, *, softcap: float, **f: Any) -> Tensor:
    return _attend(q, k, v, **f, score=lambda s: softcap * torch.tanh(s / softcap))


def softcap_after_mask(q: Tensor, k: Tensor, v: Tensor, *, softcap: float, **f: Any) -> Tensor:
    return _attend(q, k, v, **f, score=lambda s: softcap * torch.tanh(s / softcap), score_last=True)


def softcap_clamp(q: Tensor, k: Tensor, v: Tensor, *, softcap: float, **f: Any) -> Tensor:
    return _attend(q, k, v, **f, score=lambda s: s.clamp(-softcap, softcap))


def alibi(q: Tensor, k: Tensor, v: Tensor, *, alibi_slopes: Tensor, **f: Any) -> Tensor:
    bias = -alibi_slopes[:, None, None] * _distance(q, k).abs()
    return _attend(q, k, v, **f, score=lambda s: s + bias.to(s.dtype))


def alibi_one_slope(q: Tensor, k: Tensor, v: Tensor, *, alibi_slopes: Tensor, **f: Any) -> Tensor:
    return alibi(q, k, v, alibi_slopes=alibi_slopes[:1].expand(alibi_slopes.shape), **f)


def sinks(q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor, **f: Any) -> Tensor:
    return _attend(q, k, v, **f, sinks=sinks)


def sinks_ignored(q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor, **f: Any) -> Tensor:
    return _attend(q, k, v, **f)


def sinks_twice(q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor, **f: Any) -> Tensor:
    """https://github.com/ROCm/rocm-libraries/issues/12227."""
    return _attend(q, k, v, **f, sinks=sinks + math.log(2.0))


def cache(q: Tensor, k: Tensor, v: Tensor, cache_len: Tensor, *, tail: int = 0) -> Tensor:
    rows = []
    for number, end in enumerate(cache_len.tolist()):
        end = min(end + tail, k.shape[-2])
        keys, values = k[number, :, :end], v[number, :, :end]
        hidden = _distance(q[number], keys) > end - tail - q.shape[-2]
        if tail:
            hidden[:, -tail:] = False
        rows.append(_attend(q[number], keys, values, enable_gqa=True, hidden=hidden))
    return torch.stack(rows) if rows else q


def cache_off_by_one(q: Tensor, k: Tensor, v: Tensor, cache_len: Tensor) -> Tensor:
    return cache(q, k, v, cache_len, tail=1)


def cache_first_length(q: Tensor, k: Tensor, v: Tensor, cache_len: Tensor) -> Tensor:
    return cache(q, k, v, cache_len[:1].expand(cache_len.shape))


def cache_nan_padding(q: Tensor, k: Tensor, v: Tensor, cache_len: Tensor) -> Tensor:
    """https://github.com/Dao-AILab/flash-attention/issues/1745: weights of zero times NaN."""
    last = torch.arange(q.shape[-2]) - q.shape[-2]
    hidden = torch.arange(k.shape[-2]) > (cache_len[:, None] + last)[:, None, :, None]
    return _attend(q, k.nan_to_num(0.0), v, enable_gqa=True, hidden=hidden)


def cache_prefill_not_causal(q: Tensor, k: Tensor, v: Tensor, cache_len: Tensor) -> Tensor:
    """https://github.com/Mikyx-1/TinyLLM/pull/18."""
    rows = []
    for number, end in enumerate(cache_len.tolist()):
        rows.append(_attend(q[number], k[number, :, :end], v[number, :, :end], enable_gqa=True))
    return torch.stack(rows) if rows else q


def _gathered(pages: Tensor, table: Tensor, length: int) -> Tensor:
    """Return the first tokens of one sequence, ``(head, token, size)``."""
    return pages[table.long()].flatten(0, 1)[:length].transpose(0, 1)


def paged(
    q: Tensor, k: Tensor, v: Tensor, block_table: Tensor, cache_len: Tensor, *, drop: int = 0
) -> Tensor:
    rows = []
    for number, end in enumerate(cache_len.tolist()):
        end -= drop * (end % k.shape[1]) if end > k.shape[1] else 0
        used = block_table[number, : -(-end // k.shape[1])]
        keys, values = (_gathered(x, used, end) for x in (k, v))
        hidden = _distance(q[number], keys) > end - q.shape[-2]
        rows.append(_attend(q[number], keys, values, enable_gqa=True, hidden=hidden))
    return torch.stack(rows) if rows else q


def paged_kernel(q: Tensor, k: Tensor, v: Tensor, block_table: Tensor, cache_len: Tensor) -> Tensor:
    """Online softmax, a page at a time, as a decoding kernel goes."""
    output = torch.zeros((*q.shape[:-1], v.shape[-1]), dtype=q.dtype)
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    for b, h in [(b, h) for b in range(q.shape[0]) for h in range(q.shape[1])]:
        kv, end = h // (q.shape[1] // k.shape[2]), int(cache_len[b])
        position = torch.arange(q.shape[2])[:, None] + end - q.shape[2]
        peak = torch.full((q.shape[2], 1), -torch.inf, dtype=wide)
        total, found = torch.zeros_like(peak), torch.zeros(*output.shape[2:], dtype=wide)
        for start in range(0, end, k.shape[1]):
            page, n = int(block_table[b, start // k.shape[1]]), min(end - start, k.shape[1])
            scores = q[b, h].to(wide) @ k[page, :n, kv].to(wide).mT * q.shape[-1] ** -0.5
            scores = scores.masked_fill(torch.arange(start, start + n) > position, -torch.inf)
            new = torch.maximum(peak, scores.amax(-1, keepdim=True))
            old, powers = torch.exp(peak - new), torch.exp(scores - new)
            total = total * old + powers.sum(-1, keepdim=True)
            found = found * old + powers @ v[page, :n, kv].to(wide)
            peak = new
        output[b, h] = (found / total).to(q.dtype)
    return output


def paged_table_ignored(
    q: Tensor, k: Tensor, v: Tensor, block_table: Tensor, cache_len: Tensor
) -> Tensor:
    """https://github.com/hw-native-sys/pypto/pull/470: pages taken for neighbours."""
    n = block_table.shape[1] - 1
    in_order = (torch.arange(n) + n * torch.arange(len(q))[:, None]) % len(k)
    return paged(q, k, v, in_order, cache_len)


def paged_first_table(
    q: Tensor, k: Tensor, v: Tensor, block_table: Tensor, cache_len: Tensor
) -> Tensor:
    return paged(q, k, v, block_table[:1].expand(len(q), -1), cache_len)


def paged_whole_last_page(
    q: Tensor, k: Tensor, v: Tensor, block_table: Tensor, cache_len: Tensor
) -> Tensor:
    """https://github.com/hw-native-sys/simpler/pull/72."""
    rows = []
    for number, end in enumerate(cache_len.tolist()):
        last = -(-end // k.shape[1])
        keys, values = (_gathered(x, block_table[number, :last], last * k.shape[1]) for x in (k, v))
        hidden = _distance(q[number], keys) > end - q.shape[-2]
        hidden[:, end:] = False
        rows.append(_attend(q[number], keys, values, enable_gqa=True, hidden=hidden))
    return torch.stack(rows) if rows else q


def paged_partial_page_lost(
    q: Tensor, k: Tensor, v: Tensor, block_table: Tensor, cache_len: Tensor
) -> Tensor:
    return paged(q, k, v, block_table, cache_len, drop=1)


def paged_values_by_key_page_of_first_head(
    q: Tensor, k: Tensor, v: Tensor, block_table: Tensor, cache_len: Tensor
) -> Tensor:
    return paged(q, k, v[:, :, :1].expand(v.shape), block_table, cache_len)


def packed(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, is_causal: bool = False) -> Tensor:
    bounds = cu_seqlens.tolist()
    rows = []
    for start, end in pairwise(bounds):
        one = [x[start:end].transpose(0, 1) for x in (q, k, v)]
        rows.append(_attend(*one, is_causal=is_causal, enable_gqa=True).transpose(0, 1))
    return torch.cat(rows)


def packed_leaks(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, is_causal: bool = False
) -> Tensor:
    return packed(q, k, v, cu_seqlens[[0, -1]], is_causal)


def packed_causal_ignored(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, is_causal: bool = False
) -> Tensor:
    """https://github.com/facebookresearch/xformers/issues/1185."""
    return packed(q, k, v, cu_seqlens)


RIGHT = {
    "sliding_window": window, "softcap": softcap, "alibi": alibi, "sinks": sinks,
    "kv_cache": cache, "paged": paged, "packed": packed,
}  # fmt: skip
WRONG = {
    "sliding_window": (window_off_by_one, window_right_ignored),
    "softcap": (softcap_after_mask, softcap_clamp),
    "alibi": (alibi_one_slope,),
    "sinks": (sinks_ignored, sinks_twice),
    "kv_cache": (
        cache_off_by_one,
        cache_first_length,
        cache_nan_padding,
        cache_prefill_not_causal,
    ),
    "paged": (
        paged_table_ignored,
        paged_first_table,
        paged_whole_last_page,
        paged_partial_page_lost,
        paged_values_by_key_page_of_first_head,
    ),
    "packed": (packed_leaks, packed_causal_ignored),
}
