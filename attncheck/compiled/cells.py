"""Sums over a grid of cells, and the search for cuts on it; float64, rounded as torch rounds them.

Each replaces some dozen operations of torch on arrays so small that calling them is what costs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attncheck.compiled.loop import exact

__all__ = ["cut_segments", "running_sums", "spread_rows", "sum_stretches"]


@exact
def running_sums(cells: Any, rows: Any, out: Any) -> None:
    """Sum the cells before each edge of keys, in the rows before each edge of queries.

    Args:
        cells: ``(item, row, key)``.
        rows: Number of rows before each edge, int64 ``(edge,)``: 0 or more, rising by 1 at most.
        out: ``(item, edge, key + 1)``, to be written.
    """
    for item in range(out.shape[0]):
        for edge in range(out.shape[1]):
            into, row = out[item, edge], rows[edge]
            if row == 0:
                into[:] = 0
                continue
            before, along = out[item, edge - 1], 0.0
            into[0] = 0
            for key in range(cells.shape[2]):
                if rows[edge - 1] < row:
                    along += cells[item, row - 1, key]
                into[key + 1] = before[key + 1] + along


@exact
def spread_rows(values: Any, low: Any, high: Any, step: int, lead: int, out: Any) -> None:
    """Add a value of each row for every key it sees to the cells of the keys.

    Args:
        values: float64 ``(batch, head, query)``.
        low: First key that each row sees, int64 ``(batch or 1, head or 1, query)``.
        high: One behind the last, as ``low``.
        step: Side of a cell.
        lead: Keys that the first cell lacks.
        out: ``(batch, head, row cell, key cell)``, to be added to.
    """
    for batch in range(values.shape[0]):
        for head in range(values.shape[1]):
            sequence, own = min(batch, low.shape[0] - 1), min(head, low.shape[1] - 1)
            for query in range(values.shape[2]):
                begin, end = lead + low[sequence, own, query], lead + high[sequence, own, query]
                value, into = values[batch, head, query], out[batch, head, query // step]
                first, last = begin // step, (end - 1) // step
                if end <= begin:
                    continue
                if first == last:
                    into[first] += value * (end - begin)
                    continue
                into[first] += value * ((first + 1) * step - begin)
                into[last] += value * (end - last * step)
                for cell in range(first + 1, last):
                    into[cell] += value * step


@exact
def sum_stretches(cells: Any, first: Any, last: Any, out: Any) -> None:
    """Sum the cells of each row from one key to before another.

    Args:
        cells: ``(item, row, key)``.
        first: int64 ``(item, row)``.
        last: int64 ``(item, row)``.
        out: ``(item, row)``, to be written.
    """
    for item in range(out.shape[0]):
        for row in range(out.shape[1]):
            found = 0.0
            for key in range(first[item, row], last[item, row]):
                found += cells[item, row, key]
            out[item, row] = found


@exact
def cut_segments(
    sums: Any, spread: Any, keys: Any, causal: bool, limits: Any, gains: Any, edges: Any, total: Any
) -> None:
    """Cut each item where most is gained, until nothing is; see `attncheck.patterns.segments.cut`.

    Args:
        sums: Mass above even attention before two edges, ``(item, edge, edge)``, queries first.
        spread: Sum of the variances of the rows before an edge, ``(item, edge)``.
        keys: Number of keys before an edge, int64 ``(item, edge)``.
        causal: Whether no query sees a later key.
        limits: Most cuts, fewest keys of a segment, standard deviations that a cut must gain, the
            share of the keys that it must, and by which share gains that tie may differ.
        gains: Memory to work in, ``(edge,)``.
        edges: Edge at which each edge's segment begins, and ends, int64 ``(2, item, edge)``, to be
            written.
        total: Mass that the cuts gained, ``(item,)``, 0 at first.
    """
    most, fewest, noise, least_share, tie = limits
    size = sums.shape[1]
    for item in range(sums.shape[0]):
        held, start, end = sums[item], edges[0, item], edges[1, item]
        seen, variance = keys[item], spread[item]
        start[:], end[:] = 0, size - 1
        low, high = 0, size
        for _ in range(int(most)):
            for p in range(low, high):
                s, e = start[p], end[p]
                before, after = seen[p] - seen[s], seen[e] - seen[p]
                upper = held[p, e] - held[s, e] - held[p, p] + held[s, p]
                lower = held[e, p] - held[p, p] - held[e, s] + held[p, s]
                shuffled = before * (variance[e] - variance[p])
                if not causal:
                    shuffled += after * (variance[p] - variance[s])
                gain = -(upper + lower)
                least = noise * np.sqrt(shuffled) + least_share * seen[size - 1]
                fits = min(before, after) >= fewest and not gain <= least
                gains[p] = gain if fits else 0.0
            best, cut = 0.0, 0
            for p in range(size):
                best = max(best, gains[p])
            if not best > 0:
                break
            while not gains[cut] >= (1 - tie) * best:
                cut += 1
            total[item] += best
            low, high = start[cut], end[cut] if end[cut] < size - 1 else size
            for p in range(low, high):
                if p >= cut:
                    start[p] = cut
                else:
                    end[p] = cut
