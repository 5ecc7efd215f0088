"""`profile_attention`: the front door of the evaluators for weights that somebody has."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from attncheck.attention import AttentionLike, as_attention
from attncheck.evaluate.dispatch import profile_layer
from attncheck.profile import HeadProfile

__all__ = ["profile_attention"]


def profile_attention(
    attention: AttentionLike,
    *,
    tokens: Any = None,
    mask: Any = None,
    causal: bool | None = None,
    segment_ids: Any = None,
    delimiters: Collection[Any] | None = None,
    also: Collection[str] = (),
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
        also: Measures to add that a profile leaves out because they sort every row: ``"gini"``.

    Raises:
        ValueError: ``attention`` is not attention, ``also`` names no measure, or something beside
            it has the wrong shape.

    Example:
        >>> import torch
        >>> weights = torch.full((2, 4, 16, 16), 1 / 16)  # (batch, head, query, key)
        >>> profile_attention(weights)["normalized_entropy"].round(6)
        array([[1., 1., 1., 1.]])
    """
    maps = as_attention(attention, tokens=tokens, mask=mask, causal=causal)
    return HeadProfile(
        profile_layer(layer, maps.tokens, segment_ids=segment_ids, delimiters=delimiters, also=also)
        for layer in maps.layers
    )
