"""Columns and diagonals of a tally: as evidence, and those that stand out alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attncheck.evaluate.tally import Tally
from attncheck.patterns.blocks import clear_columns, clear_diagonals
from attncheck.patterns.sums import Array, Lines

__all__ = ["ClearLines", "Counted", "as_columns", "as_offsets", "clear_lines"]


@dataclass(frozen=True, eq=False)
class Counted:
    """What chance says of each line: of columns or of diagonals, ``(batch, head or 1, line)``.

    Attributes:
        rows: Usable rows that see it.
        chance: Mass that even attention would have there.
        variance: What shuffled rows would do to the mass, ``(batch, head, line)``.
    """

    rows: Tensor
    chance: Tensor
    variance: Tensor

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, chance and variance."""
        return self.rows, self.chance, self.variance


def as_columns(mass: Tensor, counted: Counted, first: Tensor) -> Lines:
    """Return sums by key, counted from the first visible key of each sequence."""
    shifted = Counted(*(_from_first(part, first) for part in counted.parts))
    return _lines(_from_first(mass, first), shifted, zero=0)


def as_offsets(mass: Tensor, counted: Counted, *, n_query: int, causal: bool) -> Lines:
    """Return sums by distance between query and key."""
    start = n_query - 1 if causal else 0
    kept = Counted(*(part[..., start:] for part in counted.parts))
    return _lines(mass[..., start:], kept, zero=n_query - 1 - start)


def _from_first(by_key: Tensor, first: Tensor) -> Tensor:
    """Shift ``(batch, head, key)`` so that each sequence begins at its first visible key."""
    if not bool(first.any()):
        return by_key
    shape = (by_key[..., 0] + first).shape
    n_key = by_key.shape[-1]
    index = torch.arange(n_key, device=by_key.device) + first[..., None]
    wide = torch.nn.functional.pad(by_key, (0, 1)).expand(*shape, -1)
    return wide.gather(-1, index.clamp(max=n_key).expand(*shape, -1))


def _lines(mass: Tensor, counted: Counted, zero: int) -> Lines:
    heads = mass.shape[1]

    def total(held: Tensor) -> Array:
        summed = held.sum(0, dtype=torch.float64).expand(heads, -1).cpu().numpy()
        return np.array(summed)

    return Lines(
        total(mass), total(counted.chance), total(counted.rows), total(counted.variance), zero
    )


@dataclass(frozen=True, eq=False)
class ClearLines:
    """Columns and diagonals that stand out alone.

    Attributes:
        columns: Which columns, bool ``(batch, head, key)``.
        offsets: Which diagonals, as `by_offset` lays them, bool ``(batch, head, offset)``.
        cells: Batch, head, query and key of the cells of usable rows on these lines, each once.
        weights: Weight of each of these cells, float64.
    """

    columns: Tensor
    offsets: Tensor
    cells: tuple[Tensor, Tensor, Tensor, Tensor]
    weights: Tensor


def clear_lines(tally: Tally, columns: Counted, offsets: Counted) -> ClearLines:
    """Find the lines, and look their weights up."""
    usable = tally.usable
    rows = usable.sum(-1, keepdim=True)
    picked = clear_columns(tally.columns, columns.chance, rows, tally.first)
    chosen = clear_diagonals(tally.by_offset(), offsets.rows)
    n_query, positions = tally.reach.n_query, tally.reach.positions
    every = torch.arange(n_query, device=positions.device)
    batch, head, key = picked.nonzero(as_tuple=True)
    on_columns = (batch, head, key[:, None].expand(-1, n_query))
    batch, head, place = chosen.nonzero(as_tuple=True)
    on_diagonals = (batch, head, positions - (place - (n_query - 1))[:, None])
    parts = []
    for number, (batch, head, key) in enumerate((on_columns, on_diagonals)):
        batch, head = batch[:, None].expand_as(key), head[:, None].expand_as(key)
        there = (key >= 0) & (key < tally.reach.n_key)
        points = (batch[there], head[there], every.expand_as(key)[there], key[there])
        kept = usable[points[:3]] & _visible(tally, points)
        if number:
            kept &= ~picked[points[0], points[1], points[3]]
        parts.append([held[kept] for held in points])
    batch, head, query, key = (torch.cat(held) for held in zip(*parts, strict=True))
    cells = (batch, head, query, key)
    return ClearLines(picked, chosen, cells, tally.source.weights_at(cells, tally.rows).double())


def _visible(tally: Tally, points: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Whether rows see keys, point by point."""
    batch, head, query, key = points
    reach = tally.reach

    def at(held: Tensor, *last: Tensor) -> Tensor:
        own = (batch if held.shape[0] > 1 else batch * 0, head if held.shape[1] > 1 else head * 0)
        return held[(*own, *last)]

    seen = (key >= at(reach.low, query)) & (key < at(reach.high, query))
    if reach.mask is not None:
        seen &= at(reach.mask, query if reach.mask.shape[2] > 1 else query * 0, key)
    return seen
