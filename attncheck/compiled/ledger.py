"""`Ledger` and `Keys`: the arrays that compiled loops read and write, by name.

Plain tuples of arrays, whose types, number of dimensions and order in memory (C) never change, so
that each loop is compiled once: for another order it would be compiled anew, or not, by what the
process did before, and sum a row in another order.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

__all__ = ["MEASURES", "NUMBERS", "Keys", "Ledger", "Sight", "places_before", "ramp_of"]

NUMBERS: Final = (
    *("peak", "top", "mass", "inner", "norm", "first", "far", "later", "overlap", "share"),
    *("duplicate", "duplicate keys", "induction", "induction keys"),
    *("delimiter", "delimiter keys", "block", "block keys"),
)
"""Numbers of a row in the order in which loops write them."""

MEASURES: Final = (
    *("row_sum_error", "entropy", "normalized_entropy", "effective_keys", "max_weight"),
    *("participation_ratio", "mean_distance", "sink_mass", "future_mass"),
)
"""Measures of a row that do not sort it, in the order in which loops write them."""


class Sight(NamedTuple):
    """What the rows of one sequence see; every array may be one for all heads.

    Attributes:
        low: First visible key, int64 ``(head, query)``.
        high: One behind the last visible key, int64 ``(head, query)``.
        valid: Rows that carry attention, bool ``(head, query)``.
        first: First key that any query sees, int64 ``(head,)``.
        position: Key position of query 0.
        positional: Whether distance means anything.
    """

    low: Any
    high: Any
    valid: Any
    first: Any
    position: int
    positional: bool


class Keys(NamedTuple):
    """What is known of the keys of one sequence; empty where it is not.

    Attributes:
        ramp: ``|k - n_key|`` of ``k`` from 0 to ``2 n_key + n_query``, float32; 0 where distance
            means nothing.
        tokens: Token of each key, int32.
        before: Token before each key, int32, -1 before the first.
        previous: The last earlier position of each key's token, int32, -1 where there is none.
        rank: Number of earlier positions of each key's token, int32.
        marks: 1 where the key is a delimiter, else 0, float32.
        segments: Segment of each key, int32.
    """

    ramp: Any
    tokens: Any
    before: Any
    previous: Any
    rank: Any
    marks: Any
    segments: Any


class Ledger(NamedTuple):
    """Where loops leave what they find in some heads of one sequence.

    Attributes:
        numbers: `NUMBERS` of each row, float32 or float64 ``(head, number, query)``.
        columns: Sums by key over usable rows, float64 ``(head, key)``.
        offsets: Sums by distance, in the order of the keys, float64 ``(head, offset)``.
        cells: Sums by cell of a coarse grid, float32 ``(head, row cell, key cell)``.
        by_key: Memory to add the rows of a row of cells in, and to halve in, float32 ``(3, key)``,
            0 at first and at the end; the keys fill whole cells, the first key stands behind
            ``lead`` others.
        by_offset: Memory to add rows in, float32 ``(offset,)``, 0 at first and at the end.
        step: Side of a cell.
        lead: Keys that the first cell lacks.
    """

    numbers: Any
    columns: Any
    offsets: Any
    cells: Any
    by_key: Any
    by_offset: Any
    step: int
    lead: int


def ramp_of(n_query: int, n_key: int, positional: bool) -> Any:
    """Return the distances of `Keys`, from which each row takes its own.

    Example:
        >>> ramp_of(1, 2, True).tolist()
        [2.0, 1.0, 0.0, 1.0, 2.0, 3.0]
    """
    length = 2 * n_key + n_query + 1
    if not positional:
        return np.zeros(length, np.float32)
    return np.abs(np.arange(length) - n_key).astype(np.float32)


def places_before(tokens: Any) -> tuple[Any, Any]:
    """Return the last earlier position of each token, -1 without, and how many there are, int32.

    Example:
        >>> [found.tolist() for found in places_before(np.array([7, 5, 7, 7]))]
        [[-1, -1, 0, 2], [0, 0, 1, 2]]
    """
    order = np.argsort(tokens, kind="stable")
    again = np.zeros(len(tokens), bool)
    again[1:] = tokens[order[1:]] == tokens[order[:-1]]
    previous, rank = np.full(len(tokens), -1, np.int32), np.zeros(len(tokens), np.int32)
    previous[order[1:][again[1:]]] = order[:-1][again[1:]]
    place = np.arange(len(tokens))
    rank[order] = place - np.maximum.accumulate(np.where(again, 0, place))
    return previous, rank
