"""A search for the segments of a head that nobody described: where do its blocks begin?

The objective is the mass inside the blocks above what even attention would put there (the
modularity of a partition into runs). The true partition is its maximum: joining two blocks adds
chance without mass, cutting one loses more mass than chance. Cuts are added one at a time, each
where it gains most, which needs only two-dimensional prefix sums and runs for all heads at once.
Long sequences are cut on a coarse grid; where that gains enough, each cut is moved to the position
that gains most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attncheck.compiled import MANY, missing
from attncheck.patterns import thresholds
from attncheck.patterns.cells import CellGrid
from attncheck.patterns.refine import Read, move_cuts

__all__ = [
    "Cuts",
    "begins",
    "cut_cells",
    "cuts_of",
    "find_segments",
    "running_sums",
    "worth_compiled",
    "worth_refining",
]

WORTH: Final = 0.05
"""Share of the mass that blocks on the grid must gain for their cuts to be moved."""


LEAST: Final = 1e-4
"""Share of the mass that a cut must gain in any case: less is rounding in nearly even heads."""

TIE: Final = 1e-4
"""Cuts whose gains differ by less than this share are equal but for rounding: the first is made."""


def find_segments(
    excess: Tensor, row_variance: Tensor, causal: bool = False, present: Tensor | None = None
) -> Tensor:
    """Cut sequences into runs that keep their attention to themselves.

    Args:
        excess: Weights less even attention, 0 where hidden, ``(item, query, key)``; queries are
            the last positions of the keys.
        row_variance: Variance of a weight of each row under chance alone, ``(item, query)``.
        causal: Whether no query sees a later key.
        present: Which keys anyone sees, bool ``(item, key)``; default: all. What is left out, such
            as padding, belongs to whatever segment is near and moves no cut.

    Returns:
        Position at which each key's segment begins, ``(item, key)``.

    Example:
        >>> blocks = torch.block_diag(torch.ones(3, 3) / 3, torch.ones(5, 5) / 5).double()
        >>> find_segments((blocks - 1 / 8)[None], torch.zeros(1, 8)).tolist()
        [[0, 0, 0, 3, 3, 3, 3, 3]]
    """
    items, n_query, n_key = excess.shape
    grid = CellGrid(n_query, n_key)
    if present is None:
        present = torch.ones(items, n_key, dtype=torch.bool, device=excess.device)
    if grid.step > 1 and not bool(present[:, [0, -1]].all()):
        return _without_padding(excess, row_variance, causal, present)
    rows, keys = slice(0, n_query), slice(0, n_key)
    cells = grid.sum_keys(grid.sum_rows(excess.double()), rows, keys)[2]
    found = cut_cells(grid, running_sums(grid, cells), row_variance, present, causal=causal)
    begin = grid.edges(excess.device)[found.begin]
    begin = begin.repeat_interleave(grid.edges(excess.device).diff(), dim=1)
    for item in worth_refining(found, grid).nonzero()[:, 0].tolist():
        edges = cuts_of(found.begin[item], grid)
        moved = move_cuts(edges, n_query, n_key, grid.step, _reading(excess[item]), 1)
        begin[item] = begins(moved.cuts, n_key)
    return begin


def _without_padding(excess: Tensor, row_variance: Tensor, causal: bool, present: Tensor) -> Tensor:
    """Search sequences cut free of what nobody sees at their ends, so that the grid fits them."""
    _, n_query, n_key = excess.shape
    shift, seen = n_key - n_query, present.to(torch.uint8)
    ends = torch.stack([seen.argmax(-1), n_key - seen.flip(-1).argmax(-1)], -1)
    begin = torch.zeros(len(excess), n_key, dtype=torch.long, device=excess.device)
    for first, last in sorted({(first, last) for first, last in ends.tolist()}):
        items = (ends == torch.tensor([first, last], device=ends.device)).all(-1)
        rows, keys = slice(max(0, first - shift), max(0, last - shift)), slice(first, last)
        found = find_segments(
            excess[items, rows, keys], row_variance[items, rows], causal, present[items, keys]
        )
        begin[items] = F.pad((found + first).double(), (first, n_key - last), "replicate").long()
    return begin


def _reading(excess: Tensor) -> Read:
    def read(rows: slice, keys: slice) -> Tensor:
        return excess[None, rows, keys].double()

    return read


def worth_refining(found: Cuts, grid: CellGrid) -> Tensor:
    """Whether cuts on a grid gain so much that they are moved to the position: bool ``(item,)``."""
    return (found.gain > WORTH * grid.n_query) & (grid.step > 1)


def cuts_of(begin: Tensor, grid: CellGrid) -> list[int]:
    """Positions at which segments begin, but the first.

    Args:
        begin: Edge at which each cell's segment begins, ``(cell,)``.
        grid: The grid.
    """
    edges = grid.edges(begin.device)[begin].tolist()
    return sorted({place for place in edges if place > 0})


def begins(cuts: Sequence[int], n_key: int) -> Tensor:
    """Where the segment of each key begins, ``(key,)``.

    Args:
        cuts: Positions at which segments begin, but the first.
        n_key: Number of keys.
    """
    lengths = torch.tensor([0, *cuts, n_key]).diff()
    return torch.tensor([0, *cuts]).repeat_interleave(lengths)


def cut_cells(
    grid: CellGrid, sums: Tensor, row_variance: Tensor, present: Tensor, *, causal: bool
) -> Cuts:
    """Cut on the coarse grid.

    Args:
        grid: The grid.
        sums: `running_sums` of the mass above even attention by cell, ``(item, edge, edge)``.
        row_variance: Variance of a weight of each row under chance alone, ``(item, query)``.
        present: Which keys anyone sees, bool ``(item, key)``.
        causal: Whether no query sees a later key.
    """
    wide = F.pad(row_variance.double(), (0, -row_variance.shape[-1] % grid.step))
    variance = wide.view(len(wide), -1, grid.step).sum(-1)
    spread = F.pad(variance.cumsum(-1), (1, 0))[:, _row_edges(grid, variance.device)]
    keys = F.pad(present.cumsum(-1), (1, 0))[:, grid.edges(present.device)]
    return cut(sums, spread, keys, causal=causal)


def _row_edges(grid: CellGrid, device: torch.device) -> Tensor:
    """Number of rows of cells before each edge of the grid's keys, ``(edge,)``."""
    places = torch.arange(grid.n_keys + 1, device=device)
    return (places - grid.shift).clamp(0, grid.n_rows)


def running_sums(grid: CellGrid, cells: Tensor) -> Tensor:
    """Sum the cells before two edges: ``(item, row edge, key edge)``.

    Args:
        grid: The grid.
        cells: ``(item, row, key)``, float64.
    """
    rows = _row_edges(grid, cells.device)
    if not worth_compiled(cells):
        return F.pad(cells.cumsum(-1).cumsum(-2), (1, 0, 1, 0))[:, rows, :]
    from attncheck.compiled import cells as loops

    sums = cells.new_empty(len(cells), len(rows), cells.shape[-1] + 1)
    loops.running_sums(cells.contiguous().numpy(), rows.numpy(), sums.numpy())
    return sums


@dataclass(frozen=True, eq=False)
class Cuts:
    """Segments on a grid.

    Attributes:
        begin: Edge at which each cell's segment begins, ``(item, cell)``.
        end: Edge at which it ends.
        gain: Mass that the cuts gained, ``(item,)``.
    """

    begin: Tensor
    end: Tensor
    gain: Tensor


def cut(sums: Tensor, spread: Tensor, keys: Tensor, *, causal: bool) -> Cuts:
    """Cut where most is gained, until nothing is.

    Args:
        sums: Mass above even attention before two edges, ``(item, edge, edge)``, queries first.
        spread: Sum of the variances of the rows before an edge, ``(item, edge)``.
        keys: Number of keys before an edge that anyone sees, ``(item, edge)``.
        causal: Whether no query sees a later key.
    """
    most = min(thresholds.MAX_CUTS, int(keys.max()) // thresholds.MIN_SEGMENT)
    cut_some = _cut_compiled if worth_compiled(sums) else _cut_together
    return cut_some(sums, spread, keys, causal, most)


def worth_compiled(cells: Tensor) -> bool:
    """Whether compiled loops may read sums or cells of a grid: many, on a CPU, with numba."""
    return cells.device.type == "cpu" and cells.numel() >= MANY and missing() is None


def _cut_compiled(sums: Tensor, spread: Tensor, keys: Tensor, causal: bool, most: int) -> Cuts:
    """Cut one item after the other."""
    from attncheck.compiled.cells import cut_segments

    items, size = spread.shape
    limits = (most, thresholds.MIN_SEGMENT, thresholds.CUT_NOISE, LEAST, TIE)
    edges, total = np.empty((2, items, size), np.int64), np.zeros(items)
    mass, variance, counts = (held.contiguous().numpy() for held in (sums, spread, keys))
    cut_segments(mass, variance, counts, causal, limits, np.empty(size), edges, total)
    start, end = torch.from_numpy(edges)[..., :-1]
    return Cuts(start, end, torch.from_numpy(total))


def _cut_together(sums: Tensor, spread: Tensor, keys: Tensor, causal: bool, most: int) -> Cuts:
    """Cut all items at once."""
    items, size = spread.shape
    flat = sums.flatten(1)
    place = torch.arange(size, device=sums.device).expand(items, -1)
    start, end = torch.zeros_like(place), torch.full_like(place, size - 1)
    total = torch.zeros(items, dtype=sums.dtype, device=sums.device)

    def at(row: Tensor, column: Tensor) -> Tensor:
        return flat.gather(1, row * size + column)

    def between(counted: Tensor, first: Tensor, last: Tensor) -> Tensor:
        return counted.gather(1, last) - counted.gather(1, first)

    for _ in range(most):
        before, after = between(keys, start, place), between(keys, place, end)
        upper = at(place, end) - at(start, end) - at(place, place) + at(start, place)
        lower = at(end, place) - at(place, place) - at(end, start) + at(place, start)
        variance = before * between(spread, place, end)
        if not causal:
            variance = variance + after * between(spread, start, place)
        gain = -(upper + lower)
        fits = torch.minimum(before, after) >= thresholds.MIN_SEGMENT
        least = thresholds.CUT_NOISE * variance.sqrt() + LEAST * keys[:, -1:]
        gain = gain.masked_fill(~fits | (gain <= least), 0)
        best = gain.amax(-1, keepdim=True)
        cut = (gain >= (1 - TIE) * best).byte().argmax(-1, keepdim=True)
        if not bool((best > 0).any()):
            break
        total += best[:, 0]
        inside = (start <= cut) & (cut < end) & (best > 0)
        start, end = (
            torch.where(inside & (place >= cut), cut, start),
            torch.where(inside & (place < cut), cut, end),
        )
    return Cuts(start[:, :-1], end[:, :-1], total)
