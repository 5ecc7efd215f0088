"""`RowBlock`: query rows of a layer, prepared once and then read by every measure.

A layer is walked block by block, so that a measure's scratch memory stays small whatever the layer
holds, and so that the weights of a block are still in cache when the next measure reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from attncheck.attention import LayerAttention

__all__ = ["RowBlock", "Window", "row_blocks"]

BLOCK_WEIGHTS: Final = {"cpu": 1 << 18, "cuda": 1 << 25}
"""Weights in a block, by device: what a core's cache holds; what keeps a GPU busy."""

Window = tuple[slice, slice, slice]
"""Which batch elements, heads and queries a block holds."""


@dataclass(frozen=True, eq=False)
class RowBlock:
    """Some query rows of one layer.

    Attributes:
        given: ``(batch, head, query, key)``, the weights as they came, float32 at least.
        visible: Bool, broadcastable to ``given``; None where every key is visible.
        counts: ``(batch, head, query)``, int64: visible keys of each row.
        valid: ``(batch, head, query)``, bool: rows that carry attention.
        positions: ``(query,)``: key position of each query; None where positions mean nothing.
        first_key: ``(batch, head)``: the first key that any query of the layer may see.
        sink_mass: ``(batch, head, query)``, float64: mass on a learned sink; None without one.
    """

    given: Tensor
    visible: Tensor | None
    counts: Tensor
    valid: Tensor
    positions: Tensor | None
    first_key: Tensor
    sink_mass: Tensor | None

    @property
    def n_key(self) -> int:
        """Number of key positions."""
        return self.given.shape[-1]

    @cached_property
    def weights(self) -> Tensor:
        """The weights on visible keys: 0 on hidden ones, and never below 0."""
        weights = self.given.clamp_min(0)
        return weights if self.visible is None else weights.masked_fill_(~self.visible, 0)

    @cached_property
    def mass(self) -> Tensor:
        """Mass on visible keys, ``(batch, head, query)``, float64."""
        return row_sum(self.weights)

    @cached_property
    def carried(self) -> Tensor:
        """Valid rows with some mass on visible keys: those that have a distribution over keys."""
        return self.valid & (self.mass > 0)

    @cached_property
    def entropy(self) -> Tensor:
        """Entropy of the row's distribution over visible keys, float64, from 0 to log(counts)."""
        plain = row_sum(torch.special.entr(self.weights))
        entropy = plain / self.mass + self.mass.log()
        return torch.clamp(entropy, torch.zeros_like(entropy), self.log_counts)

    @cached_property
    def log_counts(self) -> Tensor:
        """The largest entropy a row can have, ``(batch, head, query)``, float64."""
        return self.counts.clamp_min(1).double().log()


def row_sum(tensor: Tensor) -> Tensor:
    """Sum over keys in float64."""
    return tensor.sum(-1, dtype=torch.float64)


def row_blocks(layer: LayerAttention) -> Iterator[tuple[Window, RowBlock]]:
    """Walk a layer in blocks of rows, each with its place in ``(batch, head, query)``."""
    everything_visible = layer.mask is None and not layer.causal
    visible = layer.visible()
    counts = visible.sum(-1)
    valid = layer.valid_rows()
    first_key = visible.any(-2).byte().argmax(-1)
    dtype = torch.promote_types(layer.weights.dtype, torch.float32)
    for window in _windows(layer):
        batch, heads, queries = window
        shape = layer.weights[window].shape
        yield (
            window,
            RowBlock(
                given=layer.weights[window].detach().to(dtype),
                visible=None if everything_visible else _cut(visible, window),
                counts=_cut(counts, window).expand(shape[:3]),
                valid=valid[window],
                positions=layer.query_positions()[queries] if layer.positional else None,
                first_key=_cut(first_key, (batch, heads)).expand(shape[:2]),
                sink_mass=(
                    None if layer.sink_mass is None else layer.sink_mass[window].detach().double()
                ),
            ),
        )


def _windows(layer: LayerAttention) -> Iterator[Window]:
    """Cut a layer so that no block holds many more weights than the device's share."""
    budget = BLOCK_WEIGHTS.get(layer.weights.device.type, BLOCK_WEIGHTS["cpu"])
    queries = _share(budget, layer.n_key, layer.n_query)
    heads = _share(budget, layer.n_key * layer.n_query, layer.n_heads)
    batch = _share(budget, layer.n_key * layer.n_query * layer.n_heads, layer.batch)
    for b in range(0, layer.batch, batch):
        for h in range(0, layer.n_heads, heads):
            for q in range(0, layer.n_query, queries):
                yield slice(b, b + batch), slice(h, h + heads), slice(q, q + queries)


def _share(budget: int, size: int, most: int) -> int:
    return max(1, min(most, budget // max(size, 1)))


def _cut(tensor: Tensor, window: tuple[slice, ...]) -> Tensor:
    """Cut leading dimensions, leaving those of size 1 for broadcasting."""
    kept = [
        part if size > 1 else slice(None)
        for part, size in zip(window, tensor.shape[: len(window)], strict=True)
    ]
    return tensor[tuple(kept)]
