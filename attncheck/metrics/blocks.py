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


class Places:
    """Where some queries stand among the keys; shared by the heads of a layer.

    Args:
        positions: ``(query,)``: key position of each query.
        n_key: Number of key positions.
        dtype: Of the weights.
    """

    def __init__(self, positions: Tensor, n_key: int, dtype: torch.dtype) -> None:
        self.positions = positions
        self._behind = positions[:, None] - torch.arange(n_key, device=positions.device)
        self._dtype = dtype

    @cached_property
    def distance(self) -> Tensor:
        """``|p_i - j|``, ``(query, key)``."""
        return self._behind.abs().to(self._dtype)

    @cached_property
    def later(self) -> Tensor:
        """1 where the key comes after the query, else 0, ``(query, key)``."""
        return (self._behind < 0).to(self._dtype)


@dataclass(frozen=True, eq=False)
class RowBlock:
    """Some query rows of one layer.

    Attributes:
        given: ``(batch, head, query, key)``, the weights as they came, float32 at least.
        shown: 1 where the key is visible, else 0, broadcastable to ``given``; None where every
            key is visible. (Multiplying by it is many times faster than masking.)
        counts: ``(batch, head, query)``, int64: visible keys of each row.
        valid: ``(batch, head, query)``, bool: rows that carry attention.
        places: Where the queries stand; None where positions mean nothing.
        first_key: ``(batch, head)``: the first key that any query of the layer may see.
        sink_mass: ``(batch, head, query)``, float64: mass on a learned sink; None without one.
    """

    given: Tensor
    shown: Tensor | None
    counts: Tensor
    valid: Tensor
    places: Places | None
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
        return weights if self.shown is None else weights.mul_(self.shown)

    @cached_property
    def mass(self) -> Tensor:
        """Mass on visible keys, ``(batch, head, query)``, float64."""
        return row_sum(self.weights)

    @cached_property
    def carried(self) -> Tensor:
        """Valid rows with some mass on visible keys: those that have a distribution over keys.

        A row of NaN counts too, so that what it makes of a head's measures is seen.
        """
        return self.valid & ~(self.mass <= 0)

    @cached_property
    def entropy(self) -> Tensor:
        """Entropy of the row's distribution over visible keys, float64, from 0 to log(counts)."""
        # Only the logarithm of an exact 0 is kept finite: times 0, it adds exactly 0.
        logs = self.weights.clamp_min(torch.finfo(self.weights.dtype).tiny).log_()
        entropy = self.mass.log() - row_sum(logs.mul_(self.weights)) / self.mass
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
    visible = layer.visible()
    counts = visible.sum(-1)
    valid = layer.valid_rows()
    first_key = visible.any(-2).byte().argmax(-1)
    dtype = torch.promote_types(layer.weights.dtype, torch.float32)
    open_to_all = layer.mask is None and not layer.causal
    batch_step, head_step, query_step = _steps(layer)
    for q in range(0, layer.n_query, query_step):
        queries = slice(q, q + query_step)
        seen = visible[..., queries, :]
        # One mask for all heads is converted once, one for each head block by block.
        seen = seen.to(dtype) if seen.shape[1] == 1 else seen
        places = None
        if layer.positional:
            places = Places(layer.query_positions()[queries], layer.n_key, dtype)
        for b in range(0, layer.batch, batch_step):
            for h in range(0, layer.n_heads, head_step):
                part = slice(b, b + batch_step), slice(h, h + head_step)
                window = (*part, queries)
                given = layer.weights[window].detach().to(dtype)
                sink = None if layer.sink_mass is None else layer.sink_mass[window].detach()
                yield (
                    window,
                    RowBlock(
                        given=given,
                        shown=None if open_to_all else _cut(seen, part).to(dtype),
                        counts=_cut(counts, window).expand(given.shape[:3]),
                        valid=valid[window],
                        places=places,
                        first_key=_cut(first_key, part).expand(given.shape[:2]),
                        sink_mass=None if sink is None else sink.double(),
                    ),
                )


def _steps(layer: LayerAttention) -> tuple[int, int, int]:
    """Batch elements, heads and queries of a block, within the device's share of weights."""
    budget = BLOCK_WEIGHTS.get(layer.weights.device.type, BLOCK_WEIGHTS["cpu"])
    queries = _share(budget, layer.n_key, layer.n_query)
    heads = _share(budget, layer.n_key * layer.n_query, layer.n_heads)
    batch = _share(budget, layer.n_key * layer.n_query * layer.n_heads, layer.batch)
    return batch, heads, queries


def _share(budget: int, size: int, most: int) -> int:
    return max(1, min(most, budget // max(size, 1)))


def _cut(tensor: Tensor, window: tuple[slice, ...]) -> Tensor:
    """Cut leading dimensions, leaving those of size 1 for broadcasting."""
    kept = [
        part if size > 1 else slice(None)
        for part, size in zip(window, tensor.shape[: len(window)], strict=True)
    ]
    return tensor[tuple(kept)]
