"""The loop behind `attncheck.metrics.rapid`: all measures of given weights that do not sort."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from attncheck.compiled.loop import loop
from attncheck.compiled.rows import measure, size, total, whole

__all__ = ["COUNTS", "Measured", "Seen", "measure_rows"]

ROW_SUM_ERROR, ENTROPY, NORMALIZED, EFFECTIVE, HIGHEST = range(5)
PARTICIPATION, DISTANCE, FIRST, LATER = range(5, 9)
EVERY, SEVERAL, DISTANT, BEHIND = range(4)

COUNTS: Final = (EVERY, EVERY, SEVERAL, EVERY, EVERY, EVERY, DISTANT, BEHIND, DISTANT)
"""Where `Measured.counted` tells of each measure."""


class Seen(NamedTuple):
    """What the rows of a layer see.

    Attributes:
        high: One behind the last visible key, the first being 0, int64 ``(query,)``.
        highest: Logarithm of the number of visible keys, float64 ``(query,)``.
        position: Key position of query 0.
        positional: Whether distance means anything.
        ramp: See `attncheck.compiled.ledger.Keys`.
    """

    high: Any
    highest: Any
    position: int
    positional: bool
    ramp: Any


class Measured(NamedTuple):
    """Where the loop leaves what it finds in some heads of one sequence.

    Attributes:
        values: The measures in the order of `ledger.MEASURES`, NaN where the row has none, float64
            ``(head, query, measure)``: those of a row lie beside each other.
        counted: Rows that carry attention, those of them that see several keys, those that have
            distances, those behind the first key: bool ``(head, query, 4)``.
    """

    values: Any
    counted: Any


@loop
def measure_rows(weights: Any, seen: Any, sinks: Any, found: Any) -> Any:
    """Measure rows that see all keys up to one; see `attncheck.metrics.measures`.

    Args:
        weights: float32 ``(head, query, key)``.
        seen: What the rows see.
        sinks: Mass on learned sinks, float64 ``(head, query)``; no entries without.
        found: Where the measures go.

    Returns:
        Whether all weights are finite, none is negative, and hidden keys have none. If not, what
        was measured means nothing.
    """
    heads, n_query, n_key = weights.shape
    for head in range(heads):
        for query in range(n_query):
            high, row, place = seen.high[query], weights[head, query], seen.position + query
            held = row[: whole(0, high, n_key)]
            away = seen.ramp[n_key - place :][: held.shape[0]]
            # The hidden keys last: in the order of memory, a row comes twice as fast.
            mass, inner, square, far, least, most = measure(held, away)
            if not (least >= 0 and mass < np.inf and size(row[high:]) == 0):
                return False
            values, counted = found.values[head, query], found.counted[head, query]
            valid = mass > 0
            counted[EVERY], counted[SEVERAL] = valid, valid and high >= 2
            counted[DISTANT] = valid and seen.positional
            counted[BEHIND] = valid and (place > 0 or not seen.positional)
            values[:] = np.nan
            if valid:
                sink = sinks[head, query] if sinks.shape[0] else 0.0
                entropy = min(max(np.log(mass) - inner / mass, 0.0), seen.highest[query])
                values[ROW_SUM_ERROR] = abs(mass + sink - 1)
                values[ENTROPY], values[EFFECTIVE] = entropy, np.exp(entropy)
                values[HIGHEST], values[PARTICIPATION] = most, mass * mass / square
                if counted[SEVERAL]:
                    values[NORMALIZED] = entropy / seen.highest[query]
                if counted[BEHIND]:
                    values[FIRST] = row[0] + sink
                if seen.positional:
                    values[DISTANCE], values[LATER] = far / mass, 0.0
                    if high > place + 1:
                        values[LATER] = total(held[max(place + 1, 0) :])
    return True
