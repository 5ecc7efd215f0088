"""`Reach`: which keys each query sees, held as one stretch a row instead of a matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attncheck.attention import LayerAttention
from attncheck.patterns.cells import CellGrid

if TYPE_CHECKING:
    from attncheck.evaluate.chances import Chances

__all__ = ["Reach", "reach_of"]

MASK_ROWS = 1 << 20
"""Entries of a mask that are read together."""


@dataclass(frozen=True, eq=False)
class Reach:
    """Visible keys of each query: those from ``low`` to ``high``, less what ``mask`` hides there.

    Every tensor is ``(batch or 1, head or 1, query)``.

    Attributes:
        low: First visible key.
        high: One behind the last visible key; equal to ``low`` in rows that see none.
        seen: Number of visible keys.
        mask: Bool ``(batch or 1, head or 1, query or 1, key)`` where a row has hidden keys between
            visible ones; None where ``low`` and ``high`` say all.
        n_key: Number of keys.
        positions: Key position of each query, ``(query,)``.
        chances: What even attention would do where every row counts that sees two keys, by shape
            of the rows and whether distance means anything; see `chances_of`.
    """

    low: Tensor
    high: Tensor
    seen: Tensor
    mask: Tensor | None
    n_key: int
    positions: Tensor
    chances: dict[tuple[torch.Size, bool], Chances] = field(default_factory=dict)

    @property
    def n_query(self) -> int:
        """Number of queries."""
        return self.low.shape[-1]

    @property
    def same_for_all(self) -> bool:
        """Whether every sequence sees the same."""
        held = (self.low, self.high, self.seen, self.low if self.mask is None else self.mask)
        return all(len(part) == 1 for part in held)

    @cached_property
    def ahead(self) -> bool:
        """Whether any query sees a key behind its own position."""
        return bool((self.high > (self.positions + 1).clamp(min=0)).any())

    def part(self, batch: slice) -> Reach:
        """Return the reach of some sequences."""
        if self.same_for_all:
            return self

        def cut(held: Tensor) -> Tensor:
            return held if held.shape[0] == 1 else held[batch]

        mask = None if self.mask is None else cut(self.mask)
        low, high, seen = (cut(held) for held in (self.low, self.high, self.seen))
        return Reach(low, high, seen, mask, self.n_key, self.positions)

    def visible(self, rows: slice, keys: slice) -> Tensor:
        """Which of some keys some queries see: bool ``(batch or 1, head or 1, query, key)``."""
        place = torch.arange(keys.start, keys.stop, device=self.low.device)
        low, high = self.low[..., rows, None], self.high[..., rows, None]
        seen = (place >= low) & (place < high)
        if self.mask is not None:
            held = self.mask if self.mask.shape[2] == 1 else self.mask[:, :, rows]
            seen = seen & held[..., keys]
        return seen

    def by_key(self, per_row: Tensor) -> Tensor:
        """Sum a value of each row over the rows that see a key: ``(..., query)`` to ``(..., key)``.

        Args:
            per_row: ``(batch, head, query)``, float64.
        """
        per_row = self._widened(per_row)
        if self.mask is not None:
            shape = (*per_row.shape[:2], self.n_key)
            total = torch.zeros(shape, dtype=per_row.dtype, device=per_row.device)
            for rows, seen in self._blocks():
                total += (per_row[..., None, rows] @ seen.to(per_row.dtype))[..., 0, :]
            return total
        return _stretches(per_row, self.low, self.high, self.n_key)

    def by_offset(self, per_row: Tensor) -> Tensor:
        """Sum a value of each row over the distances it sees: ``(batch, head, offset)``.

        Offset ``o`` is the keys ``o - (n_query - 1)`` tokens behind the query, as in
        `attncheck.patterns.diagonals.by_offset`.
        """
        per_row, size = self._widened(per_row), self.n_key + self.n_query - 1
        if self.mask is not None:
            shape = (*per_row.shape[:2], size)
            total = torch.zeros(shape, dtype=per_row.dtype, device=per_row.device)
            for rows, seen in self._blocks():
                spread = (per_row[..., rows, None] * seen).expand(*per_row.shape[:2], -1, -1)
                index = self.positions[rows, None] - torch.arange(self.n_key, device=seen.device)
                index = (index + self.n_query - 1).flatten().expand(*spread.shape[:2], -1)
                total.scatter_add_(-1, index, spread.flatten(-2))
            return total
        shift = self.positions + self.n_query
        return _stretches(per_row, shift - self.high, shift - self.low, size)

    def add_by_cell(self, per_row: Tensor, grid: CellGrid, into: Tensor) -> None:
        """Add a value of each row for every key it sees to the cells of the keys.

        Args:
            per_row: ``(batch, head, query)``, float64.
            grid: The cells.
            into: ``(batch, head, row cell, key cell)``, float64.
        """
        if self.mask is not None:
            every = slice(0, self.n_key)
            for start in range(0, self.n_query, grid.step):
                rows = slice(start, min(start + grid.step, self.n_query))
                seen = self.visible(rows, every).to(per_row.dtype)
                found = per_row[..., None, rows] @ seen
                into[..., start // grid.step, :] += grid.sum_keys(found, rows, every)[2][..., 0, :]
            return
        edges, whole = grid.edges(self.low.device), torch.zeros_like(into)
        row = torch.arange(self.n_query, device=self.low.device) // grid.step * grid.n_keys
        first, last = grid.of_keys(self.low), grid.of_keys((self.high - 1).clamp(min=0))
        begin = torch.minimum(self.high, edges[first + 1]) - self.low
        end = torch.where(last > first, self.high - edges[last], 0)

        def add(cell: Tensor, value: Tensor, to: Tensor) -> None:
            to.flatten(-2).scatter_add_(-1, (row + cell).expand(per_row.shape), value)

        inner = per_row * (last > first)
        add((first + 1).clamp(max=grid.n_keys - 1), inner, whole)
        add(last, -inner, whole)
        into += whole.cumsum(-1) * edges.diff()  # cells that a stretch covers, its ends aside
        add(first, per_row * begin, into)
        add(last, per_row * end, into)

    def inside(self, start: Tensor, stop: Tensor) -> Tensor:
        """Count the visible keys of each row from one position to another.

        Args:
            start: First position, ``(batch, head, query)``.
            stop: One behind the last.
        """
        if self.mask is None:
            room = torch.minimum(stop, self.high) - torch.maximum(start, self.low)
            return room.clamp_(min=0)
        counts = []
        for rows, seen in self._blocks():
            key = torch.arange(self.n_key, device=seen.device)
            own = (key >= start[..., rows, None]) & (key < stop[..., rows, None])
            counts.append((own & seen).sum(-1))
        return torch.cat(counts, dim=-1)

    @cached_property
    def seen_keys(self) -> Tensor:
        """Which keys any query sees: bool ``(batch or 1, head or 1, key)``."""
        return self.by_key(torch.ones_like(self.low, dtype=torch.float64)) > 0.5

    @cached_property
    def first(self) -> Tensor:
        """First key that any query sees: ``(batch or 1, head or 1)``."""
        return self.seen_keys.byte().argmax(-1)

    def from_first(self, by_key: Tensor) -> Tensor:
        """Shift ``(batch, head, key)`` so that each sequence begins at its first visible key."""
        first = self.first
        if not bool(first.any()):
            return by_key
        shape = (by_key[..., 0] + first).shape
        index = torch.arange(self.n_key, device=by_key.device) + first[..., None]
        wide = torch.nn.functional.pad(by_key, (0, 1)).expand(*shape, -1)
        return wide.gather(-1, index.clamp(max=self.n_key).expand(*shape, -1))

    def _widened(self, per_row: Tensor) -> Tensor:
        return per_row + torch.zeros_like(self.low, dtype=per_row.dtype)

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        assert self.mask is not None
        leading = self.mask.shape[0] * self.mask.shape[1]
        step = max(1, MASK_ROWS // (leading * self.n_key))
        for start in range(0, self.n_query, step):
            rows = slice(start, min(start + step, self.n_query))
            yield rows, self.visible(rows, slice(0, self.n_key))


def reach_of(layer: LayerAttention) -> Reach:
    """Read what a layer's queries, all of its call, see from its mask and causality.

    No weights are made. Layers without a mask that see the same share one `Reach`.

    Example:
        >>> from attncheck.attention import QueryKey
        >>> record = QueryKey(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2), (0,), 1.0)
        >>> reach_of(LayerAttention(record, causal=True)).high.tolist()
        [[[1, 2, 3, 4]]]
    """
    bare = _bare(layer.n_query, layer.n_key, layer.causal, layer.device)
    if type(bare.low) is not Tensor:
        _bare.cache_clear()  # made under a mode whose tensors hold no numbers
    return bare if layer.mask is None else _masked(bare, layer.mask)


@lru_cache(maxsize=1)
def _bare(n_query: int, n_key: int, causal: bool, device: torch.device) -> Reach:
    """What the last queries of a sequence see where nothing but causality hides keys.

    It is kept for the next layer, which mostly sees the same.
    """
    positions = torch.arange(n_key - n_query, n_key, device=device)
    high = torch.full_like(positions, n_key)
    if causal:
        high = (positions + 1).clamp(min=0)
    low, high = torch.zeros_like(positions)[None, None], high[None, None]
    return Reach(low, high, high - low, None, n_key, positions)


def _masked(bare: Reach, mask: Tensor) -> Reach:
    """Narrow each row to what a mask shows; keep the mask only if stretches don't say it all."""
    held = Reach(bare.low, bare.high, bare.seen, mask, bare.n_key, bare.positions)
    parts = []
    for _, visible in held._blocks():
        seen = visible.sum(-1)
        numbers = visible.to(torch.uint8)
        low = numbers.argmax(-1)
        high = bare.n_key - numbers.flip(-1).argmax(-1)
        parts.append((torch.where(seen > 0, low, 0), torch.where(seen > 0, high, 0), seen))
    low, high, seen = (torch.cat(part, dim=-1) for part in zip(*parts, strict=True))
    solid = bool((high - low == seen).all())
    return Reach(low, high, seen, None if solid else mask, bare.n_key, bare.positions)


def _stretches(per_row: Tensor, low: Tensor, high: Tensor, size: int) -> Tensor:
    """Add a value of each row to every place from ``low`` to ``high``."""
    change = torch.zeros(*per_row.shape[:2], size + 1, dtype=per_row.dtype, device=per_row.device)
    change.scatter_add_(-1, low.expand(per_row.shape), per_row)
    change.scatter_add_(-1, high.expand(per_row.shape), -per_row)
    return change.cumsum(-1)[..., :-1]
