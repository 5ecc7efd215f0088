"""Sums of the block pattern: over the segments given, or over those found head by head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attncheck.patterns import thresholds
from attncheck.patterns.diagonals import by_offset
from attncheck.patterns.grid import Grid
from attncheck.patterns.segments import find_segments
from attncheck.patterns.sums import Sums

__all__ = ["measure_blocks"]


@dataclass(frozen=True, eq=False)
class _Clear:
    """Columns and diagonals that stand out alone, and so are set aside.

    Attributes:
        columns: Which columns, bool ``(batch, head, key)``.
        cells: The visible cells of the diagonals that lie on no such column: their batch, head,
            query and key.
    """

    columns: Tensor
    cells: tuple[Tensor, Tensor, Tensor, Tensor]

    def empty(self, held: Tensor) -> Tensor:
        """Set ``(batch, head, query, key)`` to 0 on the lines, in place."""
        if bool(self.columns.any()):
            held.masked_fill_(self.columns[..., None, :], 0)
        held[self.cells] = 0
        return held


def measure_blocks(
    weights: Tensor, grid: Grid, usable: Tensor, columns: Tensor, diagonals: Tensor
) -> tuple[Sums, Sums]:
    """Return the sums of the blocks, and the same beside the clear lines.

    Args:
        weights: ``(batch, head, query, key)``, 0 where hidden and in rows that do not count.
        grid: What is known of queries and keys.
        usable: Rows that count, bool ``(batch, head or 1, query)``.
        columns: Sums of the weights over each column, ``(batch, head, key)``.
        diagonals: Sums over each diagonal as `by_offset` lays them, ``(batch, head, offset)``.
    """
    seen = grid.visible & usable[..., None]
    counts = seen.sum(-1)
    clear = _clear_lines(seen, grid, columns, diagonals)
    rest = clear.empty(weights.clone())
    mass, keys = rest.sum(-1, dtype=torch.float64), _left(seen, clear)
    if grid.segments is not None:
        begin = grid.segments[:, None].expand(*weights.shape[:2], grid.n_key)
    else:
        begin = _search(rest, seen, clear, mass, keys)
    number = F.pad((begin.diff(dim=-1) != 0).cumsum(-1), (1, 0)) if grid.segments is None else begin
    of_key = F.one_hot(number).to(weights.dtype)
    of_row = number[..., grid.positions.clamp(min=0)]
    beside = of_key.masked_fill(clear.columns[..., None], 0)
    inside = _own(seen.to(weights.dtype), of_key, of_row)
    inside_beside = _own(seen.to(weights.dtype), beside, of_row)
    batch, head, query, key = clear.cells
    same = (of_row[batch, head, query] == number[batch, head, key]).to(inside_beside)
    inside_beside = inside_beside.index_put((batch, head, query), -same, accumulate=True)
    even_rows = usable.to(torch.float64).expand(mass.shape)
    return (
        _sums(weights, _own(weights, of_key, of_row), inside, counts, even_rows),
        _sums(rest, _own(rest, of_key, of_row), inside_beside, keys, mass),
    )


def _own(held: Tensor, of_key: Tensor, of_row: Tensor) -> Tensor:
    """Sum each row over the keys of its own segment: ``(batch, head, query)``."""
    return (held @ of_key).gather(-1, of_row[..., None])[..., 0]


def _left(seen: Tensor, clear: _Clear) -> Tensor:
    """Count the visible keys of each row beside the lines: ``(batch, head, query)``."""
    kept = (~clear.columns).to(torch.float32)
    keys = (seen.to(torch.float32) @ kept[..., None])[..., 0].long()
    ones = torch.ones_like(clear.cells[0])
    return keys.index_put(clear.cells[:3], -ones, accumulate=True)


def _search(rest: Tensor, seen: Tensor, clear: _Clear, mass: Tensor, keys: Tensor) -> Tensor:
    """Find segments for the heads of each sequence that have mass beside their lines."""
    even = (mass / keys.clamp(min=1)).to(rest.dtype)
    rows = seen.any(-1).sum(-1)
    worth = mass.sum(-1) > thresholds.MIN_REST * rows
    begin = torch.zeros(*rest.shape[:2], rest.shape[-1], dtype=torch.long, device=rest.device)
    if not bool(worth.any()):
        return begin
    excess = clear.empty((rest - even[..., None]).masked_fill_(~seen, 0))
    held = excess if bool(worth.all()) else excess[worth]
    spread = excess.square().sum(-1) / keys.clamp(min=1)
    causal = not bool(seen.triu(1 + seen.shape[-1] - seen.shape[-2]).any())
    held = held.reshape(-1, *held.shape[-2:])
    present = seen.any(-2).expand(begin.shape)[worth]
    begin[worth] = find_segments(held, spread[worth], causal, present)
    return begin


def _sums(weights: Tensor, found: Tensor, inside: Tensor, keys: Tensor, mass: Tensor) -> Sums:
    """Sums of a selection in rows of some mass over some keys."""
    found, inside = found.double(), inside.double()
    share = inside / keys.clamp(min=1)
    even = mass * mass / keys.clamp(min=1)
    spread = (weights.square().sum(-1, dtype=torch.float64) - even).clamp(min=0)
    per_row = (found, mass * share, mass * (inside > 0), spread * share * (1 - share))
    return Sums(*(value.sum((0, 2)).detach().cpu().numpy() for value in per_row))


def _clear_lines(seen: Tensor, grid: Grid, columns: Tensor, diagonals: Tensor) -> _Clear:
    """Find the columns and diagonals that stand out alone."""
    chance = (seen / seen.sum(-1, keepdim=True).clamp(min=1)).sum(-2)
    picked = clear_columns(columns, chance, seen.any(-1).sum(-1, keepdim=True), grid.first)
    offsets = clear_diagonals(diagonals, by_offset(seen.to(diagonals.dtype)).sum(-2))
    batch, head, place = offsets.nonzero(as_tuple=True)
    key = grid.positions - (place - (seen.shape[-2] - 1))[:, None]
    query = torch.arange(seen.shape[-2], device=seen.device).expand_as(key)
    there = (key >= 0) & (key < grid.n_key)
    batch, head = batch[:, None].expand_as(key)[there], head[:, None].expand_as(key)[there]
    query, key = query[there], key[there]
    visible = seen.expand(*picked.shape[:2], *seen.shape[-2:])[batch, head, query, key]
    beside = visible & ~picked[batch, head, key]
    return _Clear(picked, (batch[beside], head[beside], query[beside], key[beside]))


def clear_columns(mass: Tensor, chance: Tensor, rows: Tensor, first: Tensor) -> Tensor:
    """Mark the columns that stand out alone: bool ``(batch, head, key)``.

    Args:
        mass: Weight by key, ``(batch, head, key)``.
        chance: What even attention would put there, ``(batch or 1, head or 1, key)``.
        rows: Rows that count, ``(batch or 1, head or 1, 1)``.
        first: First visible key, ``(batch or 1, head or 1)``.
    """
    share = (mass - chance) / rows.clamp(min=1)
    is_first = torch.arange(mass.shape[-1], device=mass.device) == first[..., None]
    least = torch.where(is_first, thresholds.CLEAR_LINE, thresholds.CLEAR_COLUMN)
    return (share > least) & (_two_highest(share) | is_first)


def clear_diagonals(mass: Tensor, rows: Tensor) -> Tensor:
    """Mark the diagonals whose mean weight stands out of their neighbours': bool, as ``mass``.

    Args:
        mass: Weight by distance, ``(batch, head, offset)``.
        rows: Rows that see it, ``(batch or 1, head or 1, offset)``.
    """
    mean = mass / rows.clamp(min=1)
    around = F.pad(mean, (1, 1))
    above = mean - torch.maximum(around[..., 2:], around[..., :-2])
    return _two_highest(above) & (above > thresholds.CLEAR_LINE)


def _two_highest(values: Tensor) -> Tensor:
    """Mark the two highest values of the last dimension."""
    top = values.topk(min(2, values.shape[-1]), -1).values[..., -1:]
    return values >= top
