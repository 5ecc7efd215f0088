"""Sums over the rows of a tally, each row read once; float64, in the order of the rows.

The loop replaces some two hundred operations of torch on arrays so small that calling them is what
costs. What it finds is what `attncheck.evaluate.row_sums` finds without it, to rounding.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from attncheck.compiled.loop import exact

__all__ = ["READ", "TOKENWISE", "Rows", "Sums", "sum_blocks", "sum_rows"]

READ: Final = ("top", "mass", "inner", "norm", "first", "far", "later", "overlap", "share")
"""Numbers of a row that are read."""

TOKENWISE: Final = ("duplicate_token", "induction", "delimiter")
"""Patterns of tokens, in the order of their sums."""

TINY: Final = 1e-300
"""Share below which its logarithm is that of this one."""


class Rows(NamedTuple):
    """Numbers of rows, and what the rows see; of axes "or 1" one entry stands for all.

    Attributes:
        table: Float32 or float64 ``(batch, head, name, query)``.
        places: Where in it each of `READ` stands, then weight and number of keys of each of
            `TOKENWISE`, -1 where it is not; int64.
        sink: Mass on learned sinks, float64 ``(batch, head, query)``; 0 without.
        valid: Rows that carry attention, bool ``(batch, head, query)``.
        usable: Those that see two keys or more, of the same kind.
        low: First visible key, int64 ``(batch or 1, head or 1, query)``.
        highest: Entropy of an even row, float64, of the same kind.
        inverse: Weight of a visible key in it, likewise.
        first: First key that any query sees, int64 ``(batch or 1, head or 1)``.
        tokens: int64 ``(batch or 1, key)``; of no key where they are not known.
        delimiters: Whether each key is one, bool ``(batch or 1, key)``; likewise.
        memory: To work in, bool ``(2, query)``.
        entropy: To keep a head's entropies in, float64 ``(query,)``.
        position: Key position of the first query.
        positional: Whether distance means anything.
        with_sinks: Whether there are learned sinks.
    """

    table: Any
    places: Any
    sink: Any
    valid: Any
    usable: Any
    low: Any
    highest: Any
    inverse: Any
    first: Any
    tokens: Any
    delimiters: Any
    memory: Any
    entropy: Any
    position: int
    positional: bool
    with_sinks: bool


class Sums(NamedTuple):
    """What is written, float64; 0 at first, but for the maxima, ``-inf``.

    Attributes:
        measures: Sums, counts and maxima of `ledger.MEASURES`, ``(head, measure, 3)``.
        totals: Of squared weights, entropy and overlap over usable rows, ``(head, 3)``.
        selected: Mass, chance, rows and variance of the targets of `TOKENWISE`, and of the first
            key beside them, ``(head, name, 2, 4)``.
        held: Weight, squared weight and variance of each row, 0 where it is not usable,
            ``(3, batch, head, query)``.
    """

    measures: Any
    totals: Any
    selected: Any
    held: Any


class _Head(NamedTuple):
    """Numbers of a head's rows in one sequence, and what they see, each ``(query,)``.

    They are those of `Rows`, and in its table.
    """

    top: Any
    mass: Any
    inner: Any
    norm: Any
    first: Any
    far: Any
    later: Any
    overlap: Any
    share: Any
    sink: Any
    valid: Any
    usable: Any
    highest: Any
    inverse: Any


@exact
def sum_rows(rows: Rows, into: Sums) -> None:
    """Sum over all rows.

    Args:
        rows: What is read.
        into: What is written.
    """
    sees, rests = rows.memory[0], rows.memory[1]
    for batch in range(rows.valid.shape[0]):
        for head in range(rows.valid.shape[1]):
            sequence, own = min(batch, rows.low.shape[0] - 1), min(head, rows.low.shape[1] - 1)
            first = rows.first[sequence, own]
            table, places = rows.table[batch, head], rows.places
            held = _Head(
                *(table[places[0]], table[places[1]], table[places[2]], table[places[3]]),
                *(table[places[4]], table[places[5]], table[places[6]], table[places[7]]),
                *(table[places[8]], rows.sink[batch, head]),
                *(rows.valid[batch, head], rows.usable[batch, head]),
                *(rows.highest[sequence, own], rows.inverse[sequence, own]),
            )
            _see_first(rows.low[sequence, own], first, sees)
            behind = max(0, first + 1 - rows.position) if rows.positional else 0
            variance = into.held[2, batch, head]
            _add_measures(held, rows.positional, rows.entropy, into.measures[head])
            _add_sink_mass(held, sees, behind, rows.with_sinks, into.measures[head, 7])
            _add_usable(held, rows.entropy, into.held[:, batch, head], into.totals[head])
            for name in range(len(TOKENWISE)):
                place = len(READ) + 2 * name
                if places[place] >= 0:
                    many, sums = table[places[place + 1]], into.selected[head, name]
                    _add_targets(held, table[places[place]], many, variance, sums[0])
                    _leave_targets(rows, batch, name, first, sees, rests)
                    _add_first(held, many, rests, variance, sums[1])


@exact
def _see_first(low: Any, first: int, sees: Any) -> None:
    """Say which rows see the first key, of those that see any."""
    for query in range(sees.shape[0]):
        sees[query] = low[query] == first


@exact
def _leave_targets(rows: Rows, batch: int, name: int, first: int, sees: Any, rests: Any) -> None:
    """Say which rows see the first key and have it for no target of a pattern."""
    if TOKENWISE[name] == "delimiter":
        marks = rows.delimiters[min(batch, rows.delimiters.shape[0] - 1)]
        for query in range(sees.shape[0]):
            rests[query] = sees[query] and not marks[first]
        return
    tokens = rows.tokens[min(batch, rows.tokens.shape[0] - 1)]
    back = 1 if TOKENWISE[name] == "induction" else 0
    for query in range(sees.shape[0]):
        place = rows.position + query
        same = back <= first < place and tokens[first - back] == tokens[place]
        rests[query] = sees[query] and not same


@exact
def _add_measures(held: _Head, positional: bool, entropies: Any, into: Any) -> None:
    """Add the measures of valid rows, in locals, and keep their entropies.

    Entropy is found as in `attncheck.evaluate.tally`; ``into`` is ``(measure, 3)``.
    """
    count = more = 0
    error = entropy = even = keys = peak = ratio = distance = future = 0.0
    error_most = entropy_most = even_most = keys_most = -np.inf
    peak_most = ratio_most = distance_most = future_most = -np.inf
    for query in range(held.valid.shape[0]):
        if not held.valid[query]:
            continue
        count += 1
        top, mass = np.float64(held.top[query]), np.float64(held.mass[query])
        share, highest = np.float64(held.share[query]), held.highest[query]
        value = abs(mass * share + held.sink[query] - 1)
        error, error_most = error + value, _larger(value, error_most)
        value = min(max(-np.log(top) - held.inner[query], 0.0), highest)
        entropies[query] = value
        entropy, entropy_most = entropy + value, _larger(value, entropy_most)
        if held.usable[query]:
            more += 1
            part = value / highest
            even, even_most = even + part, _larger(part, even_most)
        value = np.exp(value)
        keys, keys_most = keys + value, _larger(value, keys_most)
        value = top * share
        peak, peak_most = peak + value, _larger(value, peak_most)
        value = mass / held.norm[query]
        value *= value
        ratio, ratio_most = ratio + value, _larger(value, ratio_most)
        value = held.far[query] / mass
        distance, distance_most = distance + value, _larger(value, distance_most)
        value = held.later[query] * share
        future, future_most = future + value, _larger(value, future_most)
    _note(into[0], error, count, error_most)
    _note(into[1], entropy, count, entropy_most)
    _note(into[2], even, more, even_most)
    _note(into[3], keys, count, keys_most)
    _note(into[4], peak, count, peak_most)
    _note(into[5], ratio, count, ratio_most)
    if positional:
        _note(into[6], distance, count, distance_most)
        _note(into[8], future, count, future_most)


@exact
def _add_sink_mass(held: _Head, sees: Any, behind: int, with_sinks: bool, into: Any) -> None:
    """Add the mass on the first key and on learned sinks, in rows from ``behind`` on."""
    count, found, most = 0, 0.0, -np.inf
    for query in range(behind, held.valid.shape[0]):
        if held.valid[query] and (with_sinks or sees[query]):
            value = np.float64(held.first[query]) * held.share[query] + held.sink[query]
            count, found, most = count + 1, found + value, _larger(value, most)
    _note(into, found, count, most)


@exact
def _add_usable(held: _Head, entropy: Any, kept: Any, totals: Any) -> None:
    """Keep weight, squared weight and variance of usable rows, and add what evidence needs."""
    squares = entropies = overlaps = 0.0
    for query in range(held.usable.shape[0]):
        if not held.usable[query]:
            continue
        share, even = np.float64(held.share[query]), held.inverse[query]
        norm = held.norm[query] * share
        kept[0, query] = held.mass[query] * share
        kept[1, query] = norm * norm
        kept[2, query] = max((norm * norm - even) * even, 0.0)
        squares += norm * norm
        less = 0.0 if share == 1 else np.log(max(share, TINY))
        entropies += share * (entropy[query] - less)
        overlaps += held.overlap[query]
    totals[0] += squares
    totals[1] += entropies
    totals[2] += overlaps


@exact
def _add_targets(held: _Head, weight: Any, many: Any, variance: Any, sums: Any) -> None:
    """Add what usable rows have on their targets, ``many`` of them with some weight."""
    for query in range(held.usable.shape[0]):
        if held.usable[query]:
            sums[0] += np.float64(weight[query]) * held.share[query]
            sums[1] += held.inverse[query] * many[query]
            sums[2] += many[query] > 0
            sums[3] += variance[query] * many[query]


@exact
def _add_first(held: _Head, many: Any, rests: Any, variance: Any, sums: Any) -> None:
    """Add what these rows have on the first key, where it is none of their targets."""
    for query in range(held.usable.shape[0]):
        if held.usable[query]:
            counts = np.float64(many[query] > 0 and rests[query])
            if counts > 0:
                sums[0] += np.float64(held.first[query]) * held.share[query]
            sums[1] += held.inverse[query] * counts
            sums[2] += counts
            sums[3] += variance[query] * counts


@exact
def _larger(value: Any, most: Any) -> Any:
    """The larger one; NaN once there is one."""
    return value if value > most or value != value else most


@exact
def _note(into: Any, added: Any, count: int, most: Any) -> None:
    """Add to sum, count and maximum of a measure."""
    into[0] += added
    into[1] += count
    into[2] = _larger(most, into[2])


@exact
def sum_blocks(inside: Any, keys: Any, mass: Any, square: Any, out: Any) -> None:
    """Sum what shuffled rows would have in their own segments; see `attncheck.patterns.blocks`.

    Args:
        inside: Visible keys of each row in its segment, int64 ``(batch, head, query)``.
        keys: All of its visible keys, likewise.
        mass: Weight of each row, float64, of the same shape.
        square: Squared weight of each row, likewise.
        out: Chance, rows and variance, float64 ``(head, 3)``, 0 at first.
    """
    for batch in range(mass.shape[0]):
        for head in range(mass.shape[1]):
            chance = rows = variance = 0.0
            for query in range(mass.shape[2]):
                weight, seen = mass[batch, head, query], max(keys[batch, head, query], 1)
                share = inside[batch, head, query] / seen
                spread = max(square[batch, head, query] - weight * weight / seen, 0.0)
                chance += weight * share
                rows += weight if inside[batch, head, query] > 0 else 0.0
                variance += spread * share * (1 - share)
            out[head, 0] += chance
            out[head, 1] += rows
            out[head, 2] += variance
