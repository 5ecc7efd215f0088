"""Sums of the block pattern: over the segments given, or over those found head by head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attncheck.metrics import row_dot
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

    @property
    def any(self) -> bool:
        """Whether there is any such line."""
        return bool(self.columns.any()) or len(self.cells[0]) > 0

    def empty(self, held: Tensor) -> Tensor:
        """Set ``(batch, head, query, key)`` to 0 on the lines, in place."""
        if bool(self.columns.any()):
            held.mul_((~self.columns).to(held.dtype)[..., None, :])
        held[self.cells] = 0
        return held


def measure_blocks(
    weights: Tensor,
    grid: Grid,
    usable: Tensor,
    columns: Tensor,
    diagonals: Tensor,
    scratch: Tensor,
) -> tuple[Sums, Sums]:
    """Return the sums of the blocks, and the same beside the clear lines.

    Args:
        weights: ``(batch, head, query, key)``, 0 where hidden and in rows that do not count.
        grid: What is known of queries and keys.
        usable: Rows that count, bool ``(batch, head or 1, query)``.
        columns: Sums of the weights over each column, ``(batch, head, key)``.
        diagonals: Sums over each diagonal as `by_offset` lays them, ``(batch, head, offset)``.
        scratch: Memory of the shape and dtype of the weights to work in.
    """
    seen = grid.visible & usable[..., None]
    counts = seen.sum(-1)
    clear = _clear_lines(seen, grid, columns, diagonals)
    rest = clear.empty(weights.clone()) if clear.any else weights
    mass, keys = rest.sum(-1).double(), _left(seen, counts, clear)
    if grid.segments is not None:
        begin = grid.segments[:, None].expand(*weights.shape[:2], grid.n_key)
    else:
        begin = _search(rest, seen, clear, mass, keys, scratch)
    number = F.pad((begin.diff(dim=-1) != 0).cumsum(-1), (1, 0)) if grid.segments is None else begin
    even_rows = usable.to(torch.float64).expand(mass.shape)
    found = weights.sum(-1), counts.expand(mass.shape).double(), rest.sum(-1), keys.double()
    cut = number.amax(-1) > 0  # in one segment alone lies all of a row
    if bool(cut.any()):
        inside = _inside((weights, rest), seen, number[cut], cut, grid.positions, clear)
        for whole, own in zip(found, inside, strict=True):
            whole[cut] = own.to(whole)
    return (
        _sums(weights, found[0], found[1], counts, even_rows),
        _sums(rest, found[2], found[3], keys, mass),
    )


def _inside(
    held: tuple[Tensor, Tensor],
    seen: Tensor,
    number: Tensor,
    cut: Tensor,
    positions: Tensor,
    clear: _Clear,
) -> tuple[Tensor, ...]:
    """Sum rows over their own segment in the heads of several: each ``(item, query)``.

    Args:
        held: The weights, and the same beside the clear lines.
        seen: Which keys are visible, broadcastable to the weights.
        number: Segment of each key, ``(item, key)``.
        cut: The heads of each sequence that the items are, bool ``(batch, head)``.
        positions: Key position of each query.
        clear: The clear lines.

    Returns:
        Of the weights, of the visible keys, and both once more beside the clear lines.
    """
    weights, rest = (part[cut] for part in held)
    of_key = F.one_hot(number).to(weights.dtype)
    of_row = number[:, positions.clamp(min=0)]
    visible = seen.expand(held[0].shape)[cut].to(weights.dtype)

    def own(rows: Tensor, segments: Tensor) -> Tensor:
        return (rows @ segments).gather(-1, of_row[..., None])[..., 0]

    beside = own(visible, of_key.masked_fill(clear.columns[cut][..., None], 0))
    item = (cut.flatten().cumsum(0) - 1).view_as(cut)
    batch, head, query, key = (index[cut[clear.cells[0], clear.cells[1]]] for index in clear.cells)
    place = item[batch, head]
    same = (of_row[place, query] == number[place, key]).to(beside)
    beside = beside.index_put((place, query), -same, accumulate=True)
    return own(weights, of_key), own(visible, of_key), own(rest, of_key), beside


def _left(seen: Tensor, counts: Tensor, clear: _Clear) -> Tensor:
    """Count the visible keys of each row beside the lines: ``(batch, head, query)``."""
    lead = clear.columns.shape[:2]
    batch, head, key = clear.columns.nonzero(as_tuple=True)
    keys = counts.expand(*lead, -1).clone()
    in_columns = seen.expand(*lead, -1, -1)[batch, head, :, key].long()
    keys.index_put_((batch, head), -in_columns, accumulate=True)
    ones = torch.ones_like(clear.cells[0])
    return keys.index_put_(clear.cells[:3], -ones, accumulate=True)


def _search(
    rest: Tensor, seen: Tensor, clear: _Clear, mass: Tensor, keys: Tensor, scratch: Tensor
) -> Tensor:
    """Find segments for the heads of each sequence that have mass beside their lines."""
    even = (mass / keys.clamp(min=1)).to(rest.dtype)
    rows = seen.any(-1).sum(-1)
    worth = mass.sum(-1) > thresholds.MIN_REST * rows
    begin = torch.zeros(*rest.shape[:2], rest.shape[-1], dtype=torch.long, device=rest.device)
    if not bool(worth.any()):
        return begin
    lifted = torch.addcmul(rest, even[..., None], seen.to(rest.dtype), value=-1, out=scratch)
    excess = clear.empty(lifted)
    held = excess if bool(worth.all()) else excess[worth]
    spread = row_dot(excess, excess) / keys.clamp(min=1)
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
    spread = (row_dot(weights, weights) - even).clamp(min=0)
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
