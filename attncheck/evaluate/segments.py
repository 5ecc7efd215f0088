"""The block pattern from the cells of a tally: segments given, or searched on the coarse grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attncheck.evaluate.lines import ClearLines
from attncheck.evaluate.tally import Tally
from attncheck.patterns import thresholds
from attncheck.patterns.refine import Read, move_cuts
from attncheck.patterns.segments import Cuts, cut_cells, cuts_of, worth_compiled, worth_refining
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
) -> tuple[Sums, Sums]:
    """Return the sums of the blocks, and the same beside the clear lines.

    Args:
        tally: What a walk found.
        rows: Weight and squared weight of each row, 0 in rows that do not count, float64.
        clear: Columns and diagonals that are set aside.
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
    if "block" in tally.targets.names:
        assert tally.targets.marks.segments is not None
        number = tally.targets.marks.segments.expand(shape[0], -1)
        same = number[batch, reach.positions[query].clamp(min=0)] == number[batch, key]
        held = (tally.rows["block"].double() * tally.rows["share"].double()).masked_fill(~usable, 0)
        around = held.index_put(at, -points * same, accumulate=True).clamp_(min=0)
        inside = (tally.rows["block keys"] * usable).long()
    else:
        held, around, inside, same = _searched(tally, rest, clear)
    left = inside.index_put(at, -same.to(inside.dtype), accumulate=True)
    return (
        _sums(held, inside, counts, ones, square),
        _sums(around, left, rest.keys, rest.mass, rest.square),
    )


def _searched(
    tally: Tally, rest: _Rest, clear: ClearLines
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Search segments, and say what lies in them.

    Returns:
        Weight in own segments, all and beside the lines, by cell of rows; own keys by row; which
        cells of the lines lie in the segment of their row.
    """
    grid, shape = tally.grid, tally.usable.shape
    cells = _cells(tally, clear)
    even = rest.mass / rest.keys.clamp(min=1)
    begin = torch.zeros(*shape[:2], grid.n_keys, dtype=torch.long, device=even.device)
    end = torch.full_like(begin, grid.n_keys)
    worth = rest.mass.sum(-1) > thresholds.MIN_REST * tally.usable.sum(-1)
    again: list[tuple[int, int]] = []
    if bool(worth.any()):
        found = _search(tally, rest, clear, cells.beside, even, worth)
        begin[worth], end[worth] = found.begin, found.end
        items = worth.nonzero()[worth_refining(found, grid)]
        again = [(batch, head) for batch, head in items.tolist()]
    own, start, stop = _inside(tally, cells, begin, end)
    for place in again:
        cuts = cuts_of(begin[place], grid)
        read = _reading(tally, clear, even, place)
        moved = move_cuts(cuts, shape[2], grid.n_key, grid.step, read, len(own) + 1)
        for held, added in zip(own, moved.added[1:], strict=True):
            held[place][0] += added
        start[place], stop[place] = _of_rows(moved.cuts, tally)
    at = clear.cells[:3]
    same = (start[at] <= clear.cells[3]) & (clear.cells[3] < stop[at])
    inside = tally.reach.inside(start, stop) * tally.usable
    return own[0], own[1].clamp_(min=0), inside, same


def _search(
    tally: Tally, rest: _Rest, clear: ClearLines, beside: Tensor, even: Tensor, worth: Tensor
) -> Cuts:
    """Cut the heads that have mass beside their lines: ``(item, cell)``."""
    excess = _above_even(tally, clear, even, beside)
    variance = (rest.square - rest.mass * even).clamp_(min=0) / rest.keys.clamp(min=1)
    present = tally.reach.seen_keys.expand(*worth.shape, -1)
    every = bool(worth.all())
    excess, variance, present = (
        part.flatten(0, 1) if every else part[worth] for part in (excess, variance, present)
    )
    return cut_cells(tally.grid, excess, variance, present, causal=not tally.reach.ahead)


def _reading(tally: Tally, clear: ClearLines, even: Tensor, place: tuple[int, int]) -> Read:
    """Read a head: weight above even attention beside the lines, all of it, and beside them."""
    batch, head = place
    columns, offsets = clear.columns[place], clear.offsets[place]
    positions, last = tally.reach.positions, tally.reach.n_query - 1

    def read(rows: slice, keys: slice) -> Tensor:
        weights = tally.source.weights_in((batch, head, rows, keys), tally.rows).double()
        visible = tally.reach.visible(rows, keys)
        seen = visible[batch % len(visible), head % visible.shape[1]]
        seen = seen & tally.usable[batch, head, rows, None]
        key = torch.arange(keys.start, keys.stop, device=positions.device)
        on_line = columns[keys] | offsets[positions[rows, None] - key + last]
        held = weights.masked_fill(~seen, 0)
        beside = held.masked_fill(on_line, 0)
        above = beside - even[batch, head, rows, None] * (seen & ~on_line)
        return torch.stack([above, held, beside])

    return read


def _of_rows(cuts: tuple[int, ...], tally: Tally) -> tuple[Tensor, Tensor]:
    """Where the segment of each row begins and ends, ``(query,)``."""
    edges = torch.tensor([0, *cuts, tally.reach.n_key], device=tally.usable.device)
    number = torch.searchsorted(edges, tally.reach.positions, right=True) - 1
    return edges[number], edges[number + 1]


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


def _inside(
    tally: Tally, cells: _Cells, begin: Tensor, end: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Weight in own segments, all and beside the lines, by cell of rows.

    Also where the segment of each row begins and ends: ``(batch, head, query)``.
    """
    grid = tally.grid
    of_row = (torch.arange(grid.n_rows, device=begin.device) + grid.shift).clamp(0, grid.n_keys - 1)
    first, last = begin[..., of_row], end[..., of_row]
    own = [_sum_stretches(part, first, last) for part in (cells.held, cells.beside)]
    number = torch.arange(tally.reach.n_query, device=begin.device) // grid.step
    edges = grid.edges(begin.device)
    return own, edges[first][..., number], edges[last][..., number]


def _sums(found: Tensor, inside: Tensor, keys: Tensor, mass: Tensor, square: Tensor) -> Sums:
    """Sums of a selection in rows of some mass over some keys; see `patterns.blocks`."""
    keys = keys.clamp(min=1).double()
    share = inside.double() / keys
    spread = (mass * mass).div_(keys).neg_().add_(square).clamp_(min=0).mul_(share)
    spread.addcmul_(spread, share, value=-1)
    rows = mass * (inside > 0)
    per_row = (found, share.mul_(mass), rows, spread)
    return Sums(*torch.stack([held.sum((0, 2)) for held in per_row]).cpu().numpy())
