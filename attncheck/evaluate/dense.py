"""The dense evaluator: profiles from given weights, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from attncheck.attention import AttentionLike, LayerAttention, as_attention
from attncheck.metrics import METRICS, measure_layer
from attncheck.patterns import collect_evidence
from attncheck.profile import HeadProfile, LayerProfile

__all__ = ["profile_attention", "profile_layer"]


def profile_layer(
    layer: LayerAttention,
    tokens: Any = None,
    *,
    segment_ids: Any = None,
    delimiters: Collection[Any] | None = None,
) -> LayerProfile:
    """Profile the heads of one layer from its weights.

    Args:
        layer: Weights ``(batch, head, query, key)`` with mask and causality.
        tokens: Strings or ids, ``(key,)`` or ``(batch, key)``; with them token patterns
            (induction, duplicate token, delimiter) are scored. Cross-attention ignores them.
        segment_ids: Segment of each key, ``(key,)`` or ``(batch, key)``.
        delimiters: Tokens that count as delimiters; default: punctuation and separators.

    Raises:
        ValueError: Tokens or segments of the wrong length.

    Example:
        >>> profile = profile_layer(LayerAttention(torch.eye(8)[None, None]))
        >>> profile.value("max_weight"), profile.counts["entropy"]
        (array([1.]), array([8]))
    """
    sums, counts, maxima = {}, {}, {}
    for name, (values, valid) in measure_layer(layer, METRICS.values()).items():
        sums[name] = values.masked_fill(~valid, 0).sum((0, 2)).cpu().numpy()
        counts[name] = valid.sum((0, 2)).cpu().numpy()
        maxima[name] = values.masked_fill(~valid, -torch.inf).amax((0, 2)).cpu().numpy()
    crosses = layer.kind == "cross"
    return LayerProfile(
        name=layer.name,
        index=layer.index,
        call=layer.call,
        kind=layer.kind,
        backend=layer.backend,
        causal=layer.causal,
        dtype=layer.dtype_name,
        heads=layer.heads,
        n_kv_heads=layer.n_key_value_heads,
        sums=sums,
        counts=counts,
        maxima=maxima,
        evidence=collect_evidence(
            layer,
            None if crosses else tokens,
            segment_ids=None if crosses else segment_ids,
            delimiters=delimiters,
        ),
    )


def profile_attention(
    attention: AttentionLike,
    *,
    tokens: Any = None,
    mask: Any = None,
    causal: bool | None = None,
    segment_ids: Any = None,
    delimiters: Collection[Any] | None = None,
) -> HeadProfile:
    """Profile every head of given attention weights.

    Args:
        attention: Attention weights in any form that `as_attention` takes.
        tokens: Strings or ids, one per key, or one such list per batch element; with them token
            patterns (induction, duplicate token, delimiter) are scored. Default: what the maps
            carry.
        mask: Which keys are visible, see `as_visible`. Default: what the maps carry.
        causal: Whether queries see no later key. Default: as `as_attention` finds it. Say it when
            profiles of parts are to be merged, so that no part is taken for the other kind.
        segment_ids: Segment of each key, ``(key,)`` or ``(batch, key)``.
        delimiters: Tokens that count as delimiters; default: punctuation and separators.

    Raises:
        ValueError: ``attention`` is not attention, or something beside it has the wrong shape.

    Example:
        >>> weights = torch.full((2, 4, 16, 16), 1 / 16)  # (batch, head, query, key)
        >>> profile_attention(weights)["normalized_entropy"].round(6)
        array([[1., 1., 1., 1.]])
    """
    maps = as_attention(attention, tokens=tokens, mask=mask, causal=causal)
    return HeadProfile(
        profile_layer(layer, maps.tokens, segment_ids=segment_ids, delimiters=delimiters)
        for layer in maps.layers
    )
