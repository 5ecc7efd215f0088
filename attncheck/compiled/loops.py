"""The loops over rows: of scores that are made block by block, and of weights as they are given."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from attncheck.compiled import rows as of_row
from attncheck.compiled.loop import loop

__all__ = ["look_over", "read_scores", "read_weights"]

OFTEN: Final = 8
"""A token that is one of so many keys before it, or more, is looked for key by key: many at once
cost what one place costs that the chain of its places leads to."""

HIDDEN: Final = np.float32(-1e30)
"""Score of a hidden key: makes no weight, and 0 times it is 0."""

PEAK: Final = 0
TOP: Final = 1
MASS: Final = 2
INNER: Final = 3
NORM: Final = 4
FIRST: Final = 5
FAR: Final = 6
LATER: Final = 7
OVERLAP: Final = 8
SHARE: Final = 9
DUPLICATE: Final = 10
INDUCTION: Final = 12
DELIMITER: Final = 14
BLOCK: Final = 16

measure, peak, raise_row = of_row.measure, of_row.peak, of_row.raise_
add_row, size, total, whole = of_row.add_row, of_row.size, of_row.total, of_row.whole
sum_and_least = of_row.sum_and_least
on_marks, on_same = of_row.on_marks, of_row.on_same
on_chain, on_tokens = of_row.on_chain, of_row.on_tokens
add_into, flush_into, halve = of_row.add_into, of_row.flush_into, of_row.halve


@loop
def _pick(row: Any, low: int, place: int, keys: Any, factor: float, numbers: Any) -> None:
    """Read from a row what the query's token and segment select.

    Args:
        row: Weights of the keys from ``low`` on, but for ``factor``.
        low: First visible key.
        place: The query's own place among the keys.
        keys: What is known of the keys.
        factor: Factor on the weights.
        numbers: Numbers of this row, to be written.
    """
    high = low + row.shape[0]
    own = max(place, 0)
    if keys.tokens.shape[0] and place >= 0:
        end = max(min(place, high), low)
        if keys.rank[own] * OFTEN < end - low:
            same, n_same, behind, n_behind = on_chain(row[: end - low], low, own, keys.previous)
        else:
            same, n_same, behind, n_behind = on_tokens(
                row[: end - low], keys.tokens[low:end], keys.before[low:end], keys.tokens[own]
            )
        numbers[DUPLICATE], numbers[DUPLICATE + 1] = same * factor, n_same
        numbers[INDUCTION], numbers[INDUCTION + 1] = behind * factor, n_behind
    if keys.marks.shape[0]:
        mass, number = on_marks(row, keys.marks[low:high])
        numbers[DELIMITER], numbers[DELIMITER + 1] = mass * factor, number
    if keys.segments.shape[0]:
        mass, number = on_same(row, keys.segments[low:high], keys.segments[own])
        numbers[BLOCK], numbers[BLOCK + 1] = mass * factor, number


@loop
def _look(
    row: Any, head: int, query: int, factor: float, sight: Any, keys: Any, numbers: Any
) -> None:
    """Read from a row the first key, later keys, and what the query selects.

    Args:
        row: Weights from the first visible key on, but for ``factor``; 0 behind the last.
        head: Which head.
        query: Which query.
        factor: Factor on the weights.
        sight: What rows see.
        keys: What is known of the keys.
        numbers: Numbers of this row, to be written.
    """
    low, high, place = sight.low[head, query], sight.high[head, query], sight.position + query
    first = sight.first[head] - low
    if 0 <= first < row.shape[0]:
        numbers[FIRST] = row[first] * factor
    if sight.positional and high > place + 1:
        numbers[LATER] = total(row[max(place + 1 - low, 0) :]) * factor
    _pick(row[: high - low], low, place, keys, factor, numbers)


@loop
def _add(row: Any, low: int, query: int, seen: int, factor: float, sight: Any, ledger: Any) -> Any:
    """Add a row to the sums by key and by distance; return its sum, and its overlap with even."""
    high = low + row.shape[0]
    even = np.float32(1.0 / seen)
    by_key = ledger.by_key[0, ledger.lead + low : ledger.lead + high]
    shift = sight.valid.shape[1] - 1 - query
    by_offset = ledger.by_offset[shift + low : shift + high]
    return add_row(row, np.float32(factor), even, by_key, by_offset)


@loop
def _close(low: int, high: int, head: int, row: int, ledger: Any) -> None:
    """Turn the sums of a row of cells into sums by key and by cell, and begin anew.

    Args:
        low: First key that any of its rows sees.
        high: One behind the last one.
        head: Which head.
        row: Which row of cells.
        ledger: Where it is found, and goes.
    """
    step, lead, turn = ledger.step, ledger.lead, 1
    first, last = (lead + low) // step, (lead + high - 1) // step + 1
    held = ledger.by_key[0, first * step : last * step]
    while step > 1:
        half = ledger.by_key[turn, : held.shape[0] // 2]
        halve(held, half)
        held, step, turn = half, step // 2, 3 - turn
    add_into(held, ledger.cells[head, row, first:last])
    flush_into(ledger.by_key[0, lead + low : lead + high], ledger.columns[head, low:high])


@loop
def read_scores(
    scores: Any, begin: int, start: int, sinks: Any, sight: Any, keys: Any, ledger: Any
) -> None:
    """Make weights of a block of scores, which are overwritten, and take all that is wanted.

    Args:
        scores: float32 ``(head, row, key)`` of rows from ``begin`` on, keys from ``start`` on.
        begin: The block's first query.
        start: The block's first key.
        sinks: Score of each head's learned sink, float64 ``(head, query)``; no entries without.
        sight: What rows see.
        keys: What is known of the keys.
        ledger: Where it goes.
    """
    heads, n_rows, _ = scores.shape
    for head in range(heads):
        first, beyond = ledger.columns.shape[1], 0
        for row in range(n_rows):
            query = begin + row
            low, high = sight.low[head, query], sight.high[head, query]
            if sight.valid[head, query] and high > low:
                place = sight.position + query
                end = whole(low, high, start + scores.shape[2])
                held = scores[head, row, low - start : end - start]
                held[high - low :] = HIDDEN
                away = keys.ramp[ledger.columns.shape[1] + low - place :]
                numbers = ledger.numbers[head, :, query]
                most = peak(held)
                mass, inner, square, far = raise_row(held, most, away[: held.shape[0]])
                factor = 1.0 / mass
                share = 1.0
                if sinks.shape[0]:
                    share = 1.0 / (1.0 + np.exp(sinks[head, query] - most) / mass)
                numbers[PEAK], numbers[TOP], numbers[SHARE] = most, factor, share
                numbers[MASS] = 1.0
                numbers[INNER] = inner * factor
                numbers[NORM], numbers[FAR] = np.sqrt(square) * factor, far * factor
                _look(held, head, query, factor, sight, keys, numbers)
                if high - low >= 2:
                    taken, shared = _add(
                        held, low, query, high - low, factor * share, sight, ledger
                    )
                    numbers[MASS], numbers[OVERLAP] = taken / share, shared
                    first, beyond = min(first, low), max(beyond, high)
            if ((query + 1) % ledger.step == 0 or row == n_rows - 1) and beyond:
                _close(first, beyond, head, query // ledger.step, ledger)
                first, beyond = ledger.columns.shape[1], 0
        if sight.positional:
            flush_into(ledger.by_offset, ledger.offsets[head])


@loop
def read_weights(weights: Any, sight: Any, keys: Any, ledger: Any) -> Any:
    """Take all that is wanted of given weights.

    Rows become distributions with a share, their mass, as if a sink had left it to them.

    Args:
        weights: float32 ``(head, query, key)``.
        sight: What rows see; ``valid`` is set to False in rows that are all 0.
        keys: What is known of the keys.
        ledger: Where it goes.

    Returns:
        Whether all weights are finite, none is negative, and hidden keys have none. If not, what
        was taken means nothing.
    """
    heads, n_query, n_key = weights.shape
    for head in range(heads):
        first, beyond = n_key, 0
        for query in range(n_query):
            low, high = sight.low[head, query], sight.high[head, query]
            row = weights[head, query]
            place = sight.position + query
            away = keys.ramp[ledger.columns.shape[1] + low - place :]
            # In the order of memory: from one end to the other, it comes twice as fast.
            hidden = size(row[:low])
            held = row[low : whole(low, high, n_key)]
            mass, inner, square, far, least, most = measure(held, away[: held.shape[0]])
            hidden += size(row[high:])
            if not (least >= 0 and mass < np.inf and hidden == 0):
                return False
            if most == 0:
                sight.valid[head, query] = False
            if sight.valid[head, query]:
                numbers = ledger.numbers[head, :, query]
                factor = 1.0 / mass
                numbers[TOP], numbers[MASS], numbers[SHARE] = most * factor, 1.0, mass
                # entropy = log mass - sum a log a / mass, and -log top - inner
                numbers[INNER] = inner * factor - np.log(most)
                numbers[NORM], numbers[FAR] = np.sqrt(square) * factor, far * factor
                _look(held, head, query, factor, sight, keys, numbers)
                if high - low >= 2:
                    numbers[OVERLAP] = _add(held, low, query, high - low, 1.0, sight, ledger)[1]
                    first, beyond = min(first, low), max(beyond, high)
            if ((query + 1) % ledger.step == 0 or query == n_query - 1) and beyond:
                _close(first, beyond, head, query // ledger.step, ledger)
                first, beyond = n_key, 0
        if sight.positional:
            flush_into(ledger.by_offset, ledger.offsets[head])
    return True


@loop
def look_over(weights: Any, first: int) -> Any:
    """Look whether rows are rows of attention, and whether any has weight on later keys.

    Args:
        weights: float32 ``(head, query, key)``.
        first: First key that is later than query 0.

    Returns:
        Whether all weights are finite, none is negative, and rows sum to 1 to 1e-3 or are all 0;
        and whether a later key has weight, or what is no number.
    """
    heads, n_query, n_key = weights.shape
    sound, ahead = True, False
    for head in range(heads):
        for query in range(n_query):
            row, edge = weights[head, query], min(max(first + query, 0), n_key)
            mass, least = sum_and_least(row[:edge])
            beyond, least_beyond = sum_and_least(row[edge:])
            ahead = ahead or not (beyond == 0 and least_beyond >= 0)
            mass += beyond
            even = abs(mass - 1) <= 1e-3 or mass == 0
            sound = sound and even and least >= 0 and least_beyond >= 0
    return sound, ahead
