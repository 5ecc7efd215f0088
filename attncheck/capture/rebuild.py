"""The weights that a kernel never shows, rebuilt from its query and key by its own rules."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attncheck.capture.call import AttentionCall

__all__ = ["of_query_heads", "per_head", "rebuild_weights"]


def rebuild_weights(call: AttentionCall, heads: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return weights ``(batch, head, query, key)`` and sink mass ``(batch, head, query)`` or None.

    Scores are computed in float32 (float64 for float64 inputs), in the order that backends share:
    scale, softcap, bias, mask, sink, softmax. A row that may see no key is all zero.

    Args:
        call: Query and key, and what the backend did with them.
        heads: Which query heads, ``(selected,)``, int64.
    """
    assert call.query is not None
    assert call.key is not None
    dtype = torch.promote_types(call.query.dtype, torch.float32)
    query = per_head(call.query, heads).to(dtype)
    key = of_query_heads(call.key, heads, call.query.shape[1]).to(dtype)
    scale = 1 / math.sqrt(query.shape[-1]) if call.scale is None else call.scale
    scores = torch.matmul(query, key.transpose(-1, -2)).mul_(scale)
    if call.softcap is not None:
        scores = scores.div_(call.softcap).tanh_().mul_(call.softcap)
    if call.bias is not None:
        scores = scores + per_head(call.bias, heads).to(dtype)
    scores = _masked(scores, call, heads)
    if call.sinks is None:
        return _softmax(scores, blind=call.mask is not None), None
    sinks = call.sinks.view(1, -1, 1, 1) if call.sinks.ndim == 1 else call.sinks
    sinks = per_head(sinks, heads).to(dtype).expand(*scores.shape[:3], 1)
    weights = _softmax(torch.cat([scores, sinks], dim=-1), blind=False)
    return weights[..., :-1].contiguous(), weights[..., -1].clone()


def per_head(tensor: Tensor, heads: Tensor) -> Tensor:
    """Select heads along axis 1, unless that axis is one entry for all or nothing is left out."""
    if tensor.shape[1] == 1 or len(heads) == tensor.shape[1]:
        return tensor
    return tensor[:, heads]


def of_query_heads(tensor: Tensor, heads: Tensor, n_heads: int) -> Tensor:
    """Give each selected query head its key or value, which a group of heads may share.

    Args:
        tensor: ``(batch, key-value head, key, size)``.
        heads: Selected query heads.
        n_heads: How many query heads there are.
    """
    group = max(n_heads // tensor.shape[1], 1)
    if group == 1 and len(heads) == n_heads:
        return tensor
    return tensor[:, heads // group]


def _masked(scores: Tensor, call: AttentionCall, heads: Tensor) -> Tensor:
    n_query, n_key = scores.shape[-2:]
    if call.causal:
        # Adding -inf costs a tenth of filling by a mask.
        future = torch.full((n_query, n_key), -math.inf, dtype=scores.dtype, device=scores.device)
        scores = scores.add_(future.triu_(1))
    if call.mask is None:
        return scores
    mask = per_head(call.mask, heads)
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, -math.inf)
    return scores + mask.to(scores.dtype)


def _softmax(scores: Tensor, *, blind: bool) -> Tensor:
    """Softmax over keys; a row of -inf becomes zero, as `scaled_dot_product_attention` has it.

    Args:
        scores: ``(batch, head, query, key)``.
        blind: Whether there may be such rows.
    """
    weights = torch.softmax(scores, dim=-1)
    if blind and bool(weights[..., 0].isnan().any()):
        weights.masked_fill_((scores == -math.inf).all(-1, keepdim=True), 0)
    return weights
