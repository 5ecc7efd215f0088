"""One row of attention at a time: each function is one pass over it, in the first cache.

Sums run in float32 over `PIECE` keys, in any order, and in float64 over the pieces.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from attncheck.compiled.arithmetic import ZERO, exp, larger, log, smaller
from attncheck.compiled.loop import loop

__all__ = [
    "PIECE",
    "add_into",
    "add_row",
    "flush_into",
    "halve",
    "measure",
    "on_chain",
    "on_marks",
    "on_same",
    "on_tokens",
    "peak",
    "raise_",
    "size",
    "sum_and_least",
    "total",
    "whole",
]

PIECE: Final = 256
"""Keys whose sum is taken in float32."""

LANES: Final = 16
"""Entries that a loop takes at once; what is left of a row is taken one by one."""


@loop
def whole(low: int, high: int, n_key: int) -> int:
    """End of a row whose last entries, hidden ones, fill a loop's lanes."""
    return min(low + (high - low + LANES - 1) // LANES * LANES, n_key)


@loop
def peak(row: Any) -> Any:
    """Largest entry."""
    most = row[0]
    for j in range(row.shape[0]):
        most = larger(row[j], most)
    return most


@loop
def sum_and_least(row: Any) -> Any:
    """Sum, and smallest entry or 0; which of several is no matter where one is NaN: the sum is."""
    found, least = 0.0, ZERO
    for start in range(0, row.shape[0], PIECE):
        piece = row[start : start + PIECE]
        held = ZERO
        for j in range(piece.shape[0]):
            held += piece[j]
            least = smaller(piece[j], least)
        found += held
    return found, least


@loop
def total(row: Any) -> Any:
    """Sum."""
    found = 0.0
    for start in range(0, row.shape[0], PIECE):
        piece = row[start : start + PIECE]
        held = ZERO
        for j in range(piece.shape[0]):
            held += piece[j]
        found += held
    return found


@loop
def size(row: Any) -> Any:
    """Sum of absolute entries: 0 only where all are 0, NaN where one is."""
    found = ZERO
    for j in range(row.shape[0]):
        found += abs(row[j])
    return found


@loop
def raise_(scores: Any, most: Any, distance: Any) -> Any:
    """Replace scores by ``e = exp(score - most)``; return four sums over the row.

    Returns:
        The sums of ``e``, of ``e * (score - most)``, of ``e**2`` and of ``e * distance``.
    """
    mass = inner = square = far = 0.0
    for start in range(0, scores.shape[0], PIECE):
        piece, away = scores[start : start + PIECE], distance[start : start + PIECE]
        z = s = q = d = ZERO
        for j in range(piece.shape[0]):
            x = piece[j] - most
            e = exp(x)
            piece[j] = e
            z += e
            s += e * x
            q += e * e
            d += e * away[j]
        mass += z
        inner += s
        square += q
        far += d
    return mass, inner, square, far


@loop
def measure(weights: Any, distance: Any) -> Any:
    """Return the sums of weights, ``a``, over a row: of ``a``, ``a log a``, ``a**2``, ``a d``.

    Behind them stand the smallest and the largest weight, or 0: whoever asks looks for NaN in the
    sums.
    """
    mass = inner = square = far = 0.0
    least = most = ZERO
    for start in range(0, weights.shape[0], PIECE):
        piece, away = weights[start : start + PIECE], distance[start : start + PIECE]
        z = s = q = d = ZERO
        for j in range(piece.shape[0]):
            a = piece[j]
            z += a
            s += a * log(a)
            q += a * a
            d += a * away[j]
            least, most = smaller(a, least), larger(a, most)
        mass += z
        inner += s
        square += q
        far += d
    return mass, inner, square, far, least, most


@loop
def add_row(row: Any, factor: Any, even: Any, by_key: Any, by_offset: Any) -> Any:
    """Add ``w = factor * row`` to sums by key and by distance, both in the order of the keys.

    Returns:
        The sums of ``w`` and of what it shares with even attention, ``min(w, even)``.
    """
    mass = shared = 0.0
    for start in range(0, row.shape[0], PIECE):
        piece = row[start : start + PIECE]
        keys, offsets = by_key[start : start + PIECE], by_offset[start : start + PIECE]
        z = o = ZERO
        for j in range(piece.shape[0]):
            w = piece[j] * factor
            keys[j] += w
            offsets[j] += w
            z += w
            o += w if w < even else even
        mass += z
        shared += o
    return mass, shared


@loop
def on_tokens(row: Any, tokens: Any, before: Any, own: Any) -> Any:
    """Sum a row over the keys of its own token, and over those behind its own token.

    Args:
        row: Weights of the keys before the query.
        tokens: Token of each of these keys.
        before: Token before each of these keys.
        own: The query's token.

    Returns:
        Weight and number of the keys of the same token, then of those behind it.
    """
    same_mass = next_mass = same = following = 0.0
    for start in range(0, row.shape[0], PIECE):
        piece = row[start : start + PIECE]
        here, there = tokens[start : start + PIECE], before[start : start + PIECE]
        a = b = m = n = ZERO
        for j in range(piece.shape[0]):
            is_same = np.float32(here[j] == own)
            is_next = np.float32(there[j] == own)
            a += piece[j] * is_same
            b += piece[j] * is_next
            m += is_same
            n += is_next
        same_mass += a
        next_mass += b
        same += m
        following += n
    return same_mass, same, next_mass, following


@loop
def on_chain(row: Any, low: int, own: int, previous: Any) -> Any:
    """Do what `on_tokens` does, from one earlier place of the token to the one before it.

    Args:
        row: Weights of the keys before the query.
        low: Position of the first of them.
        own: The query's own position.
        previous: The last earlier position of each position's token, -1 where there is none.

    Returns:
        Weight and number of the keys of the same token, then of those behind it.
    """
    same_mass = next_mass = same = following = 0.0
    place = previous[own]
    while place >= 0 and place >= low - 1:
        at = place - low
        if 0 <= at < row.shape[0]:
            same_mass += row[at]
            same += 1.0
        if at + 1 < row.shape[0]:
            next_mass += row[at + 1]
            following += 1.0
        place = previous[place]
    return same_mass, same, next_mass, following


@loop
def on_same(row: Any, kinds: Any, own: Any) -> Any:
    """Sum a row over the keys of one kind; return weight and number."""
    mass = number = 0.0
    for start in range(0, row.shape[0], PIECE):
        piece, here = row[start : start + PIECE], kinds[start : start + PIECE]
        a = m = ZERO
        for j in range(piece.shape[0]):
            is_same = np.float32(here[j] == own)
            a += piece[j] * is_same
            m += is_same
        mass += a
        number += m
    return mass, number


@loop
def on_marks(row: Any, marks: Any) -> Any:
    """Sum a row over marked keys (mark 1, else 0); return weight and number."""
    mass = number = 0.0
    for start in range(0, row.shape[0], PIECE):
        piece, here = row[start : start + PIECE], marks[start : start + PIECE]
        a = m = ZERO
        for j in range(piece.shape[0]):
            a += piece[j] * here[j]
            m += here[j]
        mass += a
        number += m
    return mass, number


@loop
def add_into(held: Any, into: Any) -> None:
    """Add each entry to another."""
    for j in range(held.shape[0]):
        into[j] += held[j]


@loop
def flush_into(held: Any, into: Any) -> None:
    """Add float32 sums to float64 ones, and begin anew."""
    for j in range(held.shape[0]):
        into[j] += held[j]
        held[j] = ZERO


@loop
def halve(row: Any, into: Any) -> None:
    """Add neighbours: the first with the second, the third with the fourth, and so on."""
    for j in range(into.shape[0]):
        into[j] = row[2 * j] + row[2 * j + 1]
