"""`RowBlock`: query rows of a layer, prepared once and then read by every measure.

A layer is walked block by block, so that a measure's scratch memory stays small whatever the layer
holds, and so that the weights of a block are still in cache when the next measure reads them. Keys
that a causal block cannot see are only looked at to know that they weigh nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from attncheck.attention import LayerAttention

__all__ = ["RowBlock", "Window", "row_blocks", "row_dot", "row_log_dot", "row_sum"]

BLOCK_WEIGHTS: Final = {"cpu": 1 << 20, "cuda": 1 << 25}
"""Weights in a block, by device: what a processor's cache holds; what keeps a GPU busy."""

BLOCK_ROWS: Final = {"cpu": 128, "cuda": 1 << 12}
"""Queries in a block of a causal layer, by device: fewer skip more of what no query sees."""

PIECE: Final = 128
"""Products that are added in the precision of the weights, before float64 takes over."""

DOT: Final = getattr(np, "vecdot", None) or partial(np.einsum, "...k,...k->...")
"""Sum of products over the last axis: half the time of ``einsum`` where numpy has it (2.0)."""

Window = tuple[slice, slice, slice]
"""Which batch elements, heads and queries a block holds."""


class Places:
    """Where some queries stand among the keys; shared by the heads of a layer.

    Args:
        positions: ``(query,)``: key position of each query.
        reach: Number of keys that some of the queries may see.
        dtype: Of the weights.
        causal: Whether keys that lie ahead are hidden.
    """

    def __init__(self, positions: Tensor, reach: int, dtype: torch.dtype, causal: bool) -> None:
        self.positions, self.causal, self._reach, self._dtype = positions, causal, reach, dtype

    @cached_property
    def distance(self) -> Tensor:
        """``|p_i - j|`` of the keys within reach, ``(query, key)``."""
        keys = torch.arange(self._reach, dtype=self._dtype, device=self.positions.device)
        return (self.positions.to(self._dtype)[:, None] - keys).abs_()

    def later(self, n_key: int) -> Tensor:
        """1 where the key comes after the query, else 0, ``(query, key)``."""
        keys = torch.arange(n_key, device=self.positions.device)
        return (keys > self.positions[:, None]).to(self._dtype)


@dataclass(frozen=True, eq=False)
class RowBlock:
    """Some query rows of one layer.

    Attributes:
        given: ``(batch, head, query, key)``, the weights as they came, float32 at least.
        reach: Keys from this one on are hidden from every query of the block.
        shown: 1 where one of the keys ``edge`` to ``reach`` is visible, else 0, broadcastable to
            that part of ``given``; None where all are. (Multiplying is many times faster than
            masking.)
        edge: Keys before this one are visible to every query of the block.
        counts: ``(batch, head, query)``, int64: visible keys of each row.
        sighted: ``(batch, head, query)``, bool: rows that see a key that matters.
        places: Where the queries stand; None where positions mean nothing.
        first_key: ``(batch, head)``: the first key that any query of the layer may see.
        sees_first: ``(batch, head, query)``, bool: whether the row sees that key.
        sink_mass: ``(batch, head, query)``, float64: mass on a learned sink; None without one.
    """

    given: Tensor
    reach: int
    shown: Tensor | None
    edge: int
    counts: Tensor
    sighted: Tensor
    places: Places | None
    first_key: Tensor
    sees_first: Tensor
    sink_mass: Tensor | None

    @cached_property
    def near(self) -> Tensor:
        """The weights within reach, as they came."""
        return self.given[..., : self.reach]

    @cached_property
    def far(self) -> Tensor | None:
        """The weights out of reach; None where all of them are 0, as they should be."""
        far = self.given[..., self.reach :]
        # Extremes cost a tenth of comparing every weight; NaN comes through them.
        if not far.shape[-1]:
            return None
        empty = bool(far.amax() == 0) and (self.positive or bool(far.amin() == 0))
        return None if empty else far

    @cached_property
    def positive(self) -> bool:
        """Whether no weight at all is negative, or NaN."""
        return bool(self.given.amin() >= 0)

    @cached_property
    def lowest(self) -> Tensor:
        """The lowest weight of each row within reach, hidden keys included."""
        return self.near.amin(-1)

    @cached_property
    def highest(self) -> Tensor:
        """The highest weight of each row within reach, hidden keys included."""
        return self.near.amax(-1)

    @cached_property
    def clean(self) -> bool:
        """Whether no weight within reach is negative and hidden keys have none."""
        if self.shown is not None and self.edge == 0:  # a mask: hiding costs as little as looking
            return False
        if not self.positive and not bool(self.near.amin() >= 0):
            return False
        if self.shown is None:
            return True
        return not bool(row_dot(self.near[..., self.edge :], 1 - self.shown).any())

    @cached_property
    def weights(self) -> Tensor:
        """The weights within reach: 0 on hidden keys, and never below 0."""
        if self.clean:
            return self.near
        return self.hide_(self.near.clamp_min(0))

    def hide_(self, weights: Tensor) -> Tensor:
        """Set weights within reach to 0 on hidden keys, in place."""
        if self.shown is not None:
            weights[..., self.edge :].mul_(self.shown)
        return weights

    @cached_property
    def mass(self) -> Tensor:
        """Mass on visible keys, ``(batch, head, query)``, float64."""
        return row_sum(self.weights)

    @cached_property
    def total(self) -> Tensor:
        """Mass on all keys, hidden and negative included."""
        return self.mass if self.clean and self.far is None else row_sum(self.given)

    @cached_property
    def valid(self) -> Tensor:
        """Rows that carry attention: those that are sighted and not all exactly 0."""
        attends = self.highest != 0
        if not self.positive:
            attends = attends | (self.lowest != 0)
        if self.far is not None:
            attends = attends | (self.far.amax(-1) != 0) | (self.far.amin(-1) != 0)
        return self.sighted & attends

    @cached_property
    def carried(self) -> Tensor:
        """Valid rows with some mass on visible keys: those that have a distribution over keys.

        A row of NaN counts too, so that what it makes of a head's measures is seen.
        """
        return self.valid & ~(self.mass <= 0)

    @cached_property
    def entropy(self) -> Tensor:
        """Entropy of the row's distribution over visible keys, float64, from 0 to log(counts)."""
        entropy = self.mass.log() - row_log_dot(self.weights) / self.mass
        return entropy.clamp_min_(0).minimum(self.log_counts)

    @cached_property
    def log_counts(self) -> Tensor:
        """The largest entropy a row can have, ``(batch, head, query)``, float64."""
        return self.counts.clamp_min(1).double().log()


def row_sum(tensor: Tensor) -> Tensor:
    """Sum over keys in float64."""
    return tensor.sum(-1, dtype=torch.float64)


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products over keys; in float64 from `PIECE` to `PIECE`, ``b`` may broadcast.

    On a CPU by numpy, which neither holds nor converts the products.
    """
    if a.device.type != "cpu":
        return row_sum(a * b)
    x, y = a.numpy(), b.numpy()
    whole = a.shape[-1] // PIECE * PIECE
    total: Any = 0.0
    with np.errstate(all="ignore"):  # infinite weights give NaN, which whoever asks looks for
        if whole < a.shape[-1] or not whole:
            total = DOT(x[..., whole:], y[..., whole:]).astype(np.float64)
        if whole:
            pieces = (-1, PIECE)
            x = x[..., :whole].reshape(*x.shape[:-1], *pieces)
            y = y[..., :whole].reshape(*y.shape[:-1], *pieces)
            total = total + DOT(x, y).sum(-1, dtype=np.float64)
    return torch.from_numpy(np.asarray(total))


def row_log_dot(weights: Tensor, scratch: Tensor | None = None) -> Tensor:
    """``sum_j a_ij log a_ij`` of weights that are not negative; 0 log 0 is 0.

    Args:
        weights: ``(..., key)``.
        scratch: Memory of the same shape and dtype to work in; default: some of its own.
    """
    # Only the logarithm of an exact 0 is kept finite: times 0, it adds exactly 0.
    tiny = torch.finfo(weights.dtype).tiny
    return row_dot(_log_(torch.clamp_min(weights, tiny, out=scratch)), weights)


def _log_(tensor: Tensor) -> Tensor:
    """Take the logarithm in place; on a CPU through numpy, which is several times faster."""
    if tensor.device.type == "cpu":
        held = tensor.numpy()
        np.log(held, out=held)
        return tensor
    return tensor.log_()


class _Sight:
    """What each query of a layer sees, for all heads and sequences of one mask at once.

    Attributes:
        counts: Number of visible keys, ``(batch or 1, head or 1, query)``.
        rows: Which rows see a key that matters.
        first_key: First key that any query sees, ``(batch or 1, head or 1)``.
        sees_first: Which rows see that key.
    """

    def __init__(self, layer: LayerAttention) -> None:
        self._layer, self._positions = layer, layer.query_positions()
        if layer.mask is None and layer.sighted is None:
            ends = (self._positions + 1).clamp(0, layer.n_key)
            ends = ends if layer.causal else torch.full_like(ends, layer.n_key)
            self.counts = ends.expand(1, 1, layer.n_query)
            self.rows = self.sees_first = self.counts > 0
            self.first_key = torch.zeros_like(self.counts[..., 0])
            self._visible = None
            return
        self._visible = visible = layer.visible()
        self.counts, self.rows = visible.sum(-1), layer.sighted_rows()
        self.first_key = visible.any(-2).byte().argmax(-1)
        index = self.first_key[..., None, None].expand(*visible.shape[:3], 1)
        self.sees_first = visible.gather(-1, index)[..., 0]

    def seen(self, queries: slice, keys: slice) -> Tensor:
        """Return what some queries see of some keys, ``(batch or 1, head or 1, query, key)``."""
        if self._visible is not None:
            return self._visible[..., queries, keys]
        places = torch.arange(keys.start, keys.stop, device=self._positions.device)
        return (places <= self._positions[queries, None])[None, None]

    def span(self, queries: slice) -> tuple[int, int]:
        """Return before which key some queries see every key, and from which on none."""
        layer = self._layer
        if not layer.causal:
            return (layer.n_key if layer.mask is None else 0), layer.n_key
        positions = self._positions[queries]
        reach = max(1, int(positions.max()) + 1)
        everyone = max(0, int(positions.min()) + 1) if layer.mask is None else 0
        return min(reach, everyone), reach


def row_blocks(layer: LayerAttention) -> Iterator[tuple[Window, RowBlock]]:
    """Walk a layer in blocks of rows, each with its place in ``(batch, head, query)``."""
    sight = _Sight(layer)
    dtype = torch.promote_types(layer.weights.dtype, torch.float32)
    positions = layer.query_positions()
    batch_step, head_step, query_step = _steps(layer)
    for q in range(0, layer.n_query, query_step):
        queries = slice(q, min(q + query_step, layer.n_query))
        edge, reach = sight.span(queries)
        seen = None if edge == reach else sight.seen(queries, slice(edge, reach))
        # One mask for all heads is converted once, one for each head block by block.
        seen = seen.to(dtype) if seen is not None and seen.shape[1] == 1 else seen
        places = None
        if layer.positional:
            places = Places(positions[queries], reach, dtype, layer.causal)
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
                        reach=reach,
                        shown=None if seen is None else _cut(seen, part).to(dtype),
                        edge=edge,
                        counts=_cut(sight.counts, window).expand(given.shape[:3]),
                        sighted=_cut(sight.rows, window).expand(given.shape[:3]),
                        places=places,
                        first_key=_cut(sight.first_key, part).expand(given.shape[:2]),
                        sees_first=_cut(sight.sees_first, window).expand(given.shape[:3]),
                        sink_mass=None if sink is None else sink.double(),
                    ),
                )


def _steps(layer: LayerAttention) -> tuple[int, int, int]:
    """Batch elements, heads and queries of a block, within the device's share of weights."""
    device = layer.weights.device.type
    budget = BLOCK_WEIGHTS.get(device, BLOCK_WEIGHTS["cpu"])
    rows = BLOCK_ROWS.get(device, BLOCK_ROWS["cpu"]) if layer.causal else layer.n_query
    queries = _share(budget, layer.n_key, min(rows, layer.n_query))
    heads = _share(budget, layer.n_key * queries, layer.n_heads)
    batch = _share(budget, layer.n_key * queries * layer.n_heads, layer.batch)
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
