"""Changes to a layer that must not change what its rows measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from attncheck.attention import LayerAttention


def with_full_mask(layer: LayerAttention) -> LayerAttention:
    """Spell mask and causality out as one mask of the weights' own shape."""
    return replace(layer, mask=layer.visible().expand(layer.weights.shape).clone())


def with_heads(layer: LayerAttention, order: Sequence[int]) -> LayerAttention:
    layer, index = with_full_mask(layer), list(order)
    assert layer.mask is not None
    return replace(layer, weights=layer.weights[:, index], mask=layer.mask[:, index])


def with_batch(layer: LayerAttention, order: Sequence[int]) -> LayerAttention:
    layer, index = with_full_mask(layer), list(order)
    assert layer.mask is not None
    return replace(layer, weights=layer.weights[index], mask=layer.mask[index])


def padded(layer: LayerAttention, left: int, right: int) -> LayerAttention:
    """Add hidden keys on both sides and, in self-attention, queries of their own."""
    rows = (left, right) if layer.kind == "self" else (0, 0)
    layer = with_full_mask(layer)
    assert layer.mask is not None
    return replace(
        layer,
        weights=F.pad(layer.weights, (left, right, *rows)),
        mask=F.pad(layer.mask, (left, right, *rows), value=False),
    )


def last_queries(layer: LayerAttention, n_query: int) -> LayerAttention:
    """Keep the last queries, as decoding with a key-value cache does."""
    layer = with_full_mask(layer)
    assert layer.mask is not None
    start = layer.n_query - n_query
    return replace(layer, weights=layer.weights[:, :, start:], mask=layer.mask[:, :, start:])


def evened(layer: LayerAttention, share: float) -> LayerAttention:
    """Spread a share of every row that sees a key evenly over the keys it sees."""
    visible = layer.visible().to(layer.weights)
    even = visible / visible.sum(-1, keepdim=True).clamp(min=1)
    mixed = (1 - share) * layer.weights + share * even
    return replace(layer, weights=torch.where(layer.valid_rows()[..., None], mixed, layer.weights))
