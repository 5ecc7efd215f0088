"""Sums of the block pattern: over the segments given, or over those found head by head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attncheck.patterns import thresholds
from attncheck.patterns.diagonals import by_offset
from attncheck.patterns.grid import Grid
from attncheck.patterns.segments import find_segments
from attncheck.patterns.sums import Sums

__all__ = ["measure_blocks"]


def measure_blocks(weights: Tensor, grid: Grid, usable: Tensor) -> tuple[Sums, Sums]:
    """Return the sums of the blocks, and the same beside the clear lines.

    Args:
        weights: ``(batch, head, query, key)``, 0 where hidden and in rows that do not count.
        grid: What is known of queries and keys.
        usable: Rows that count, bool ``(batch, head, query)``.
    """
    seen = grid.visible & usable[..., None]
    lines = _clear_lines(weights, seen, grid)
    rest = weights.masked_fill(lines, 0)
    left = seen & ~lines
    mass, keys = rest.sum(-1, dtype=torch.float64), left.sum(-1)
    if grid.segments is not None:
        begin = grid.segments[:, None].expand(*weights.shape[:2], grid.n_key)
    else:
        begin = _search(rest, left, mass, keys, usable)
    own = begin[..., grid.positions.clamp(min=0)]
    same = own[..., None] == begin[..., None, :]
    return (
        _sums(weights, seen & same, seen.sum(-1), usable.to(torch.float64)),
        _sums(rest, left & same, keys, mass),
    )


def _search(rest: Tensor, left: Tensor, mass: Tensor, keys: Tensor, usable: Tensor) -> Tensor:
    """Find segments for the heads of each sequence that have mass beside their lines."""
    even = (mass / keys.clamp(min=1))[..., None]
    rows = usable.sum(-1)
    worth = mass.sum(-1) > thresholds.MIN_REST * rows
    begin = torch.zeros(*rest.shape[:2], rest.shape[-1], dtype=torch.long, device=rest.device)
    if not bool(worth.any()):
        return begin
    excess = torch.where(left[worth], rest[worth].double() - even[worth], 0)
    cells = keys.expand(worth.shape + keys.shape[-1:])[worth].clamp(min=1)
    begin[worth] = find_segments(excess, excess.square().sum(-1) / cells)
    return begin


def _sums(weights: Tensor, same: Tensor, keys: Tensor, mass: Tensor) -> Sums:
    """Sums of a selection in rows of some mass over some keys."""
    inside = same.sum(-1)
    share = inside.to(torch.float64) / keys.clamp(min=1)
    found = (weights * same).sum(-1, dtype=torch.float64)
    even = mass * mass / keys.clamp(min=1)
    spread = (weights.square().sum(-1, dtype=torch.float64) - even).clamp(min=0)
    per_row = (found, mass * share, mass * (inside > 0), spread * share * (1 - share))
    return Sums(*(value.sum((0, 2)).detach().cpu().numpy() for value in per_row))


def _clear_lines(weights: Tensor, seen: Tensor, grid: Grid) -> Tensor:
    """Mark the columns and diagonals that stand out alone: bool ``(batch, head, query, key)``."""
    column, diagonal = _column_shares(weights, seen), _offset_means(weights, seen)
    keys, zero = grid.n_key, weights.shape[2] - 1
    first = grid.keys == grid.first[..., None]
    clear = torch.where(first, thresholds.CLEAR_LINE, thresholds.CLEAR_COLUMN)
    picked = (column > clear) & (_two_highest(column) | first)
    offsets = _two_highest(diagonal) & (diagonal > thresholds.CLEAR_LINE)
    place = (grid.offsets + zero).flatten().expand(*offsets.shape[:2], -1)
    along = offsets.gather(-1, place).reshape(*offsets.shape[:2], -1, keys)
    return along | picked[..., None, :]


def _two_highest(values: Tensor) -> Tensor:
    """Mark the two highest values of the last dimension."""
    top = values.topk(min(2, values.shape[-1]), -1).values[..., -1:]
    return values >= top


def _column_shares(weights: Tensor, seen: Tensor) -> Tensor:
    """Share of all mass that each column holds above its chance."""
    chance = (seen / seen.sum(-1, keepdim=True).clamp(min=1)).sum(-2)
    return (weights.sum(-2) - chance) / seen.any(-1).sum(-1, keepdim=True).clamp(min=1)


def _offset_means(weights: Tensor, seen: Tensor) -> Tensor:
    """Mean weight of each diagonal above the higher of its neighbours."""
    rows = by_offset(seen.to(weights.dtype)).sum(-2)
    mean = by_offset(weights).sum(-2) / rows.clamp(min=1)
    around = F.pad(mean, (1, 1))
    return mean - torch.maximum(around[..., 2:], around[..., :-2])
