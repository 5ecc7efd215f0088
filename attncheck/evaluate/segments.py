"""The block pattern from the cells of a tally: segments given, or searched on the coarse grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attncheck.evaluate.lines import ClearLines
from attncheck.evaluate.tally import Tally
from attncheck.patterns import thresholds
from attncheck.patterns.refine import Read, move_cuts
from attncheck.patterns.segments import (
    Cuts,
    cut_cells,
    cuts_of,
    running_sums,
    worth_compiled,
    worth_refining,
)
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
        _sums(held, inside, counts, (usable.double(), square), looped=tally.looped),
        _sums(around, left, rest.keys, (rest.mass, rest.square), looped=tally.looped),
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
    even = rest.mass / rest.keys.clamp(min=1)
    begin = torch.zeros(*shape[:2], grid.n_keys, dtype=torch.long, device=even.device)
    end = torch.full_like(begin, grid.n_keys)
    worth = rest.mass.sum(-1) > thresholds.MIN_REST * tally.usable.sum(-1)
    again: list[tuple[int, int]] = []
    if bool(worth.any()):
        found = _search(tally, rest, clear, even, worth)
        begin[worth], end[worth] = found.begin, found.end
        items = worth.nonzero()[worth_refining(found, grid)]
        again = [(batch, head) for batch, head in items.tolist()]
    held, start, stop = _inside(tally, begin, end)
    same = _on_lines_inside(clear, start, stop)
    batch, head, query, _ = clear.cells
    cells = batch, head, query // grid.step
    around = held.index_put(cells, -clear.weights * same, accumulate=True)
    for place in again:
        cuts = cuts_of(begin[place], grid)
        read = _reading(tally, clear, even, place)
        moved = move_cuts(cuts, shape[2], grid.n_key, grid.step, read, 3)
        for whole, added in zip((held, around), moved.added[1:], strict=True):
            whole[place][0] += added
        start[place], stop[place] = _of_rows(moved.cuts, tally)
    same = _on_lines_inside(clear, start, stop) if again else same
    inside = tally.reach.inside(start, stop) * tally.usable
    return held, around.clamp_(min=0), inside, same


def _on_lines_inside(clear: ClearLines, start: Tensor, stop: Tensor) -> Tensor:
    """Which cells of the lines lie in the segment of their row, bool ``(point,)``."""
    at, key = clear.cells[:3], clear.cells[3]
    return (start[at] <= key) & (key < stop[at])


def _search(tally: Tally, rest: _Rest, clear: ClearLines, even: Tensor, worth: Tensor) -> Cuts:
    """Cut the heads that have mass beside their lines: ``(item, cell)``."""
    variance = (rest.square - rest.mass * even).clamp_(min=0) / rest.keys.clamp(min=1)
    present = tally.reach.seen_keys.expand(*worth.shape, -1)
    sums, causal = _sum_excess(tally, clear, even, worth), not tally.reach.ahead
    return cut_cells(tally.grid, sums, variance[worth], present[worth], causal=causal)


def _sum_excess(tally: Tally, clear: ClearLines, even: Tensor, worth: Tensor) -> Tensor:
    """Running sums of the weight beside the lines above that of even rows: see `cut_cells`."""
    assert tally.cells is not None
    grid, reach = tally.grid, tally.reach
    if reach.mask is None and worth_compiled(tally.cells):
        return _sum_excess_in_loop(tally, clear, even, worth)
    excess = tally.cells.to(torch.float64, copy=True)
    reach.add_by_cell(-even, grid, excess)
    batch, head, query, key = clear.cells
    place = batch, head, query // grid.step, grid.of_keys(key)
    excess.index_put_(place, even[clear.cells[:3]] - clear.weights, accumulate=True)
    return running_sums(grid, excess[worth])


def _sum_excess_in_loop(tally: Tally, clear: ClearLines, even: Tensor, worth: Tensor) -> Tensor:
    from attncheck.compiled import cells as loops

    assert tally.cells is not None
    grid, reach, items = tally.grid, tally.reach, worth.nonzero()
    even, low, high = (part.contiguous() for part in (even, reach.low, reach.high))
    rows = loops.Rows(even.numpy(), low.numpy(), high.numpy(), grid.step, grid.lead)
    batch, head, query, key = (part.contiguous().numpy() for part in clear.cells)
    following, first = np.empty(len(batch), np.int64), np.empty(tuple(worth.shape), np.int64)
    weights = clear.weights.contiguous().numpy()
    points = loops.Points(batch, head, query, key, weights, following, first)
    sums = even.new_empty(len(items), grid.n_keys + 1, grid.n_keys + 1)
    room = np.empty((grid.n_rows, grid.n_keys)), np.empty(grid.n_keys), sums.numpy()
    loops.sum_excess(tally.cells.contiguous().numpy(), items.numpy(), rows, points, room)
    return sums


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


def _inside(tally: Tally, begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weight in own segments, by cell of rows, and where the segment of each row begins and ends.

    Args:
        tally: What a walk found.
        begin: Edge at which each cell's segment begins, ``(batch, head, cell)``.
        end: Edge at which it ends.

    Returns:
        float64 ``(batch, head, row cell)``; twice int64 ``(batch, head, query)``.
    """
    assert tally.cells is not None
    grid = tally.grid
    of_row = (torch.arange(grid.n_rows, device=begin.device) + grid.shift).clamp(0, grid.n_keys - 1)
    first, last = begin[..., of_row], end[..., of_row]
    number = torch.arange(tally.reach.n_query, device=begin.device) // grid.step
    edges = grid.edges(begin.device)
    held = _sum_stretches(tally.cells, first, last)
    return held, edges[first][..., number], edges[last][..., number]


def _sums(
    found: Tensor, inside: Tensor, keys: Tensor, rows: tuple[Tensor, Tensor], *, looped: bool
) -> Sums:
    """Sums of a selection in rows of some mass over some keys; see `patterns.blocks`.

    Args:
        found: Weight in the selection, of rows or of cells of rows, ``(batch, head, row)``.
        inside: Visible keys in it, ``(batch, head, query)``.
        keys: All visible keys.
        rows: Weight and squared weight of each row, float64.
        looped: Whether compiled loops may sum.
    """
    mass, square = rows
    if looped:
        from attncheck.compiled.sums import sum_blocks

        even = np.zeros((mass.shape[1], 3))
        inside, keys, mass, square = (h.contiguous() for h in (inside, keys, mass, square))
        sum_blocks(inside.numpy(), keys.numpy(), mass.numpy(), square.numpy(), even)
        return Sums(found.sum((0, 2)).numpy(), *even.T)
    keys = keys.clamp(min=1).double()
    share = inside.double() / keys
    spread = (mass * mass).div_(keys).neg_().add_(square).clamp_(min=0).mul_(share)
    spread.addcmul_(spread, share, value=-1)
    per_row = (found, share.mul_(mass), mass * (inside > 0), spread)
    return Sums(*torch.stack([held.sum((0, 2)) for held in per_row]).cpu().numpy())
