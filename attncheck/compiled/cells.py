"""Sums over a grid of cells, and the search for cuts on it; float64, rounded as torch rounds them.

Each replaces some dozen operations of torch on arrays so small that calling them is what costs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attncheck.compiled.loop import exact

__all__ = ["Points", "Rows", "cut_segments", "running_sums", "sum_excess", "sum_stretches"]


class Rows(NamedTuple):
    """What the rows of some sequences see, and what even attention would have there.

    Attributes:
        even: Weight of a visible key in an even row, float64 ``(batch, head, query)``.
        low: First key that each row sees, int64 ``(batch or 1, head or 1, query)``.
        high: One behind the last, as ``low``.
        step: Side of a cell.
        lead: Keys that the first cell lacks.
    """

    even: Any
    low: Any
    high: Any
    step: int
    lead: int


class Points(NamedTuple):
    """Single weights that are set aside.

    Attributes:
        batch: Sequence of each, int64 ``(point,)``; so are ``head``, ``query`` and ``key``.
        weights: Weight of each, float64 ``(point,)``.
        following: Memory for the next point of the same head, int64 ``(point,)``.
        first: Memory for the first point of each head, int64 ``(batch, head)``.
    """

    batch: Any
    head: Any
    query: Any
    key: Any
    weights: Any
    following: Any
    first: Any


@exact
def running_sums(cells: Any, rows: Any, out: Any) -> None:
    """Sum the cells before each edge of keys, in the rows before each edge of queries.

    Args:
        cells: ``(item, row, key)``.
        rows: Number of rows before each edge, int64 ``(edge,)``: never falling.
        out: ``(item, edge, key + 1)``, to be written.
    """
    for item in range(out.shape[0]):
        done = 0
        for edge in range(out.shape[1]):
            into = out[item, edge]
            for key in range(into.shape[0]):
                into[key] = out[item, edge - 1, key] if edge else 0.0
            for row in range(done, rows[edge]):
                along = 0.0
                for key in range(cells.shape[2]):
                    along += cells[item, row, key]
                    into[key + 1] += along
            done = rows[edge]


@exact
def sum_excess(cells: Any, items: Any, rows: Rows, points: Points, room: Any) -> None:
    """Sum what cells hold above even attention, but for single points, before each two edges.

    Edges of rows are those of keys; the rows of cells are the last. Of more rows than keys the
    first lie before all edges.

    Args:
        cells: Weight by cell, ``(batch, head, row cell, key cell)``.
        items: Sequence and head of each item, int64 ``(item, 2)``.
        rows: What the rows see.
        points: What is set aside: there, nothing is above even attention.
        room: Memory to work in, float64 ``(row cell, key cell)`` and ``(key cell,)``, and where the
            sums go, ``(item, edge, edge)``.
    """
    held, change, out = room
    points.first[:] = -1
    for point in range(points.batch.shape[0] - 1, -1, -1):
        batch, head = points.batch[point], points.head[point]
        points.following[point] = points.first[batch, head]
        points.first[batch, head] = point
    for item in range(items.shape[0]):
        batch, head = items[item]
        sequence, own = min(batch, rows.low.shape[0] - 1), min(head, rows.low.shape[1] - 1)
        even = rows.even[batch, head]
        for row in range(held.shape[0]):
            for key in range(held.shape[1]):
                held[row, key] = cells[batch, head, row, key]
        point = points.first[batch, head]
        while point >= 0:
            query, key = points.query[point], points.key[point] + rows.lead
            held[query // rows.step, key // rows.step] += even[query] - points.weights[point]
            point = points.following[point]
        low, high = rows.low[sequence, own], rows.high[sequence, own]
        edge = out.shape[1] - held.shape[0] - 1  # before which no row of cells lies, if any
        out[item, : max(edge, 0) + 1] = 0
        for row in range(held.shape[0]):
            change[:] = 0
            queries = row * rows.step, min((row + 1) * rows.step, even.shape[0])
            _take_even(even, low, high, queries, rows.step, rows.lead, held[row], change)
            above, into = out[item, max(edge + row, 0)], out[item, max(edge + row + 1, 0)]
            into[0] = covered = along = 0.0
            for key in range(held.shape[1]):
                covered += change[key]
                along += held[row, key] + covered
                into[key + 1] = above[key + 1] + along


@exact
def _take_even(
    even: Any, low: Any, high: Any, queries: Any, step: int, lead: int, held: Any, change: Any
) -> None:
    """Take from a row of cells what its rows would have there if they were even.

    Args:
        even: Weight of a visible key, ``(query,)``.
        low: First key of each row.
        high: One behind the last.
        queries: The first row, and one behind the last.
        step: Side of a cell.
        lead: Keys that the first cell lacks.
        held: Cells in which a row begins or ends, ``(key cell,)``.
        change: What is taken from each cell in between beyond the one before, ``(key cell,)``.
    """
    for query in range(*queries):
        begin, end, value = lead + low[query], lead + high[query], even[query]
        first, last = begin // step, (end - 1) // step
        if end <= begin:
            continue
        if first == last:
            held[first] -= value * (end - begin)
            continue
        held[first] -= value * ((first + 1) * step - begin)
        held[last] -= value * (end - last * step)
        change[first + 1] -= value * step
        change[last] += value * step


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
