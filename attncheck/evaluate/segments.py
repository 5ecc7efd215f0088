"""The block pattern from the cells of a tally: segments given, or searched on the coarse grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attncheck.evaluate.lines import ClearLines
from attncheck.evaluate.tally import Tally
from attncheck.patterns import thresholds
from attncheck.patterns.segments import cut, worth_compiled
from attncheck.patterns.sums import Sums

__all__ = ["measure_segments"]


@dataclass(frozen=True, eq=False)
class _Rest:
    """What is left beside the clear lines, by row, float64 ``(batch, head, query)``.

    Attributes:
        mass: Weight.
        square: Squared weight.
        keys: Visible keys.
    """

    mass: Tensor
    square: Tensor
    keys: Tensor


@dataclass(frozen=True, eq=False)
class _Cells:
    """Weight by cell of the coarse grid, ``(batch, head, row cell, key cell)``.

    Attributes:
        held: All of it, in the tally's dtype.
        beside: What is left beside the clear lines, float64.
    """

    held: Tensor
    beside: Tensor


def measure_segments(
    tally: Tally,
    rows: tuple[Tensor, Tensor],
    clear: ClearLines,
    segments: tuple[Tensor, Tensor, Tensor] | None,
) -> tuple[Sums, Sums]:
    """Return the sums of the blocks, and the same beside the clear lines.

    Args:
        tally: What a walk found.
        rows: Weight and squared weight of each row, 0 in rows that do not count, float64.
        clear: Columns and diagonals that are set aside.
        segments: Where segments were given: weight and number of visible keys in its own segment
            for each row, and the segment of each key, ``(batch or 1, key)``.
    """
    usable, reach = tally.usable, tally.reach
    shape = usable.shape
    counts = reach.seen.expand(shape) * usable
    batch, head, query, key = clear.cells
    at, points = (batch, head, query), clear.weights
    mass, square = rows
    rest = _Rest(
        mass.index_put(at, -points, accumulate=True).clamp_(min=0),
        square.index_put(at, -points.square(), accumulate=True).clamp_(min=0),
        counts.index_put(at, -torch.ones_like(query), accumulate=True),
    )
    ones = usable.double()
    if segments is not None:
        own, inside, of_key = segments
        number = of_key.expand(shape[0], -1)
        same = number[batch, reach.positions[query].clamp(min=0)] == number[batch, key]
        beside = own.double().index_put(at, -points * same, accumulate=True).clamp_(min=0)
        held, around = (own * usable).double(), beside * usable
        inside = (inside.expand(shape) * usable).long()
    else:
        cells = _cells(tally, clear)
        begin, end = _search(tally, rest, clear, cells.beside)
        held, around, inside, same = _inside(tally, clear, cells, begin, end)
    left = inside.index_put(at, -same.to(inside.dtype), accumulate=True)
    return (
        _sums(held, inside, counts, ones, square),
        _sums(around, left, rest.keys, rest.mass, rest.square),
    )


def _search(tally: Tally, rest: _Rest, clear: ClearLines, beside: Tensor) -> tuple[Tensor, Tensor]:
    """Return the edges at which each cell's segment begins and ends: ``(batch, head, cell)``."""
    grid, shape = tally.grid, tally.usable.shape
    cells = torch.arange(grid.n_keys, device=clear.weights.device)
    begin = torch.zeros_like(cells).expand(*shape[:2], -1).clone()
    end = torch.full_like(begin, grid.n_keys)
    worth = rest.mass.sum(-1) > thresholds.MIN_REST * tally.usable.sum(-1)
    if not bool(worth.any()):
        return begin, end
    even = rest.mass / rest.keys.clamp(min=1)
    excess = _above_even(tally, clear, even, beside)
    variance = (rest.square - rest.mass * even).clamp_(min=0) / rest.keys.clamp(min=1)
    variance = _by_row_cell(variance, grid.step).sum(-1)
    own = (torch.arange(grid.n_keys + 1, device=clear.weights.device) - grid.shift).clamp(
        0, grid.n_rows
    )
    sums = _running_sums(excess, own)
    spread = F.pad(variance.cumsum(-1), (1, 0))[..., own]
    present = tally.reach.seen_keys.expand(*shape[:2], -1)
    keys = F.pad(present.cumsum(-1), (1, 0))[..., grid.edges(present.device)]
    every = bool(worth.all())
    chosen = (part.flatten(0, 1) if every else part[worth] for part in (sums, spread, keys))
    found = cut(*chosen, causal=not tally.reach.ahead)
    begin[worth], end[worth] = found.begin, found.end
    return begin, end


def _running_sums(cells: Tensor, rows: Tensor) -> Tensor:
    """Sum the cells before two edges: ``(batch, head, row edge, key edge)``.

    Args:
        cells: ``(batch, head, row, key)``.
        rows: Number of rows before each edge of rows, ``(row edge,)``.
    """
    if not worth_compiled(cells):
        return F.pad(cells.cumsum(-1).cumsum(-2), (1, 0, 1, 0))[..., rows, :]
    from attncheck.compiled.cells import running_sums

    sums = cells.new_empty(*cells.shape[:2], len(rows), cells.shape[-1] + 1)
    running_sums(cells.flatten(0, 1).numpy(), rows.numpy(), sums.flatten(0, 1).numpy())
    return sums


def _sum_stretches(cells: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Sum the cells of each row from one key to before another: ``(batch, head, row)``."""
    if not worth_compiled(cells):
        along = F.pad(cells.double().cumsum(-1), (1, 0))
        return (along.gather(-1, last[..., None]) - along.gather(-1, first[..., None]))[..., 0]
    from attncheck.compiled.cells import sum_stretches

    sums = torch.empty(cells.shape[:-1], dtype=torch.float64)
    every = (held.contiguous().flatten(0, 1).numpy() for held in (cells, first, last, sums))
    sum_stretches(*every)
    return sums


def _cells(tally: Tally, clear: ClearLines) -> _Cells:
    assert tally.cells is not None
    beside = tally.cells.to(torch.float64, copy=True)
    beside.index_put_(_cells_of(tally, clear), -clear.weights, accumulate=True)
    return _Cells(tally.cells, beside)


def _cells_of(tally: Tally, clear: ClearLines) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, head, query, key = clear.cells
    return batch, head, query // tally.grid.step, tally.grid.of_keys(key)


def _above_even(tally: Tally, clear: ClearLines, even: Tensor, beside: Tensor) -> Tensor:
    """Weight by cell beside the lines, less what it were if the rows were even there."""
    excess = beside.clone()
    tally.reach.add_by_cell(-even, tally.grid, excess)
    points = even[clear.cells[:3]]
    return excess.index_put_(_cells_of(tally, clear), points, accumulate=True)


def _by_row_cell(per_row: Tensor, step: int) -> Tensor:
    """Split the last dimension, queries, into cells: ``(..., cell, step)``."""
    wide = F.pad(per_row, (0, -per_row.shape[-1] % step))
    return wide.view(*wide.shape[:-1], -1, step)


def _inside(
    tally: Tally, clear: ClearLines, cells: _Cells, begin: Tensor, end: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight in own segments, all and beside the lines, by cell of rows; own keys by row.

    The last of the four says which cells of the lines lie in the segment of their row.
    """
    grid, reach = tally.grid, tally.reach
    of_row = (torch.arange(grid.n_rows, device=begin.device) + grid.shift).clamp(0, grid.n_keys - 1)
    first, last = begin[..., of_row], end[..., of_row]

    held, beside = (_sum_stretches(part, first, last) for part in (cells.held, cells.beside))
    number = torch.arange(reach.n_query, device=begin.device) // grid.step
    edges = grid.edges(begin.device)
    start, stop = edges[first][..., number], edges[last][..., number]
    inside = reach.inside(start, stop)
    batch, head, query, key = clear.cells
    at = (batch, head, query)
    same = (start[at] <= key) & (key < stop[at])
    return held, beside.clamp_(min=0), inside * tally.usable, same


def _sums(found: Tensor, inside: Tensor, keys: Tensor, mass: Tensor, square: Tensor) -> Sums:
    """Sums of a selection in rows of some mass over some keys; see `patterns.blocks`."""
    inside = inside.double()
    share = inside / keys.clamp(min=1)
    spread = (square - mass * mass / keys.clamp(min=1)).clamp(min=0)
    per_row = (found, mass * share, mass * (inside > 0), spread * share * (1 - share))
    return Sums(*(value.sum((0, 2)).cpu().numpy() for value in per_row))
