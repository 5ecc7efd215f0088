"""The diagonal or the band of each head."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from attncheck.patterns import thresholds as t
from attncheck.patterns.chance import Flags, Index, deviations, searched, strength_of
from attncheck.patterns.evidence import PatternEvidence
from attncheck.patterns.sums import SUMS, Array, Lines

__all__ = ["Position", "find_position"]

NAME_OF: Final = {0: "diagonal", 1: "previous_token", -1: "next_token"}


@dataclass(frozen=True, eq=False)
class Position:
    """The diagonal or the band of each head."""

    names: NDArray[np.str_]
    strength: Array
    real: Flags
    second: Array
    profile: Array
    square: Array
    above: Array
    widest: Array
    spike: Array


def find_position(evidence: PatternEvidence, excess: Array, known: Array) -> Position:
    """Choose between one diagonal, two, and a band."""
    offsets, rows, heads = evidence.offsets, evidence.rows, np.arange(evidence.n_heads)
    zero, numbers = offsets.zero, offsets.numbers
    common = offsets.rows >= t.MIN_ROWS_SHARE * rows[:, None]
    top = np.where(common, excess, -np.inf).argmax(1)
    above = excess[heads, top]
    bands = _windows(excess, zero)
    sums: dict[str, Any] = {name: _windows(getattr(offsets, name), zero) for name in SUMS}
    sums["rows"] = np.broadcast_to(rows[:, None], bands.shape)
    far = deviations(evidence, bands, Lines(**sums), known)
    clear = far.argmax(1)
    band, chance = bands[heads, clear], sums["chance"][heads, clear]
    widest = np.maximum(bands.max(1), above)

    # Single diagonals against the band, both with the chance mass that the band has replaced.
    full = bands.argmax(1)
    inside_band = np.clip(strength_of(bands[heads, full], rows, sums["chance"][heads, full]), 0, 1)
    held = excess + inside_band[:, None] * offsets.chance
    held = np.where(common, held / np.maximum(offsets.rows, 1), -np.inf)
    own = held[heads, top]
    whole = np.maximum(inside_band, own)
    second, apart = _second_line(held, top)
    pair = apart & (second >= t.MIXED_RATIO * own)
    pair &= own + second >= t.TWO_LINES_SHARE * whole
    one_line = (own >= t.SINGLE_SHARE * whole) | pair

    best = offsets.of_heads(top)
    line = strength_of(above, best.rows, best.chance)
    near = np.isin(numbers[top], list(NAME_OF))
    needed = np.where(near, t.Z_NAMED, searched(excess.shape[1]))
    real_line = deviations(evidence, above, best, known) >= needed
    strength = np.where(one_line, line, strength_of(band, rows, chance))
    real = np.where(one_line, real_line, far[heads, clear] >= t.Z_BAND)
    real &= (strength >= t.MIN_STRENGTH) & (np.maximum(band, above) >= t.MIN_STRENGTH / 2 * rows)
    names = np.array([NAME_OF.get(int(numbers[k]), "offset") for k in top])
    profile = np.where(excess > 0, excess, 0) / np.maximum(offsets.rows, 1)
    inside = np.abs(numbers) <= (clear % max(1, bands.shape[1] // (3 if zero else 1)) + 1)[:, None]
    only = np.arange(excess.shape[1]) == top[:, None]
    profile = np.where(np.where(one_line[:, None], only, inside), profile, 0)
    return Position(
        names=np.where(one_line, names, "local"),
        strength=np.clip(strength, 0, 1),
        real=real,
        second=np.where(pair, second / np.maximum(own, 1e-12) * line, 0),
        profile=profile,
        square=np.where(real, (profile**2 * offsets.rows).sum(1), 0),
        above=above,
        widest=widest,
        spike=_spike(offsets, top),
    )


def _windows(values: Array, zero: int) -> Array:
    """Sums over the bands ``|d| <= w``, ``0 <= d <= w``, ``-w <= d <= 0``, by width w >= 1."""
    longest = max(zero, values.shape[1] - 1 - zero)
    reach = max(2, math.ceil(t.WIDEST_BAND * (longest + 1)))
    ends = (max(0, reach - zero), max(0, reach - (values.shape[1] - 1 - zero)))
    room = np.pad(values, ((0, 0), ends))
    room = room[:, zero + ends[0] - reach :][:, : 2 * reach + 1]
    middle = room[:, reach : reach + 1]
    back = np.cumsum(room[:, reach + 1 :], axis=1)
    ahead = np.cumsum(room[:, reach - 1 :: -1], axis=1)
    sides = (middle + back + ahead, middle + back, middle + ahead)
    return np.concatenate(sides if zero else sides[1:2], axis=1)


def _second_line(excess: Array, top: Index) -> tuple[Array, Flags]:
    """Excess of the second diagonal, and whether it lies apart from the first."""
    heads = np.arange(len(top))
    if excess.shape[1] < 2:
        return np.zeros(len(top)), np.zeros(len(top), dtype=bool)
    others = excess.copy()
    others[heads, top] = -np.inf
    place = others.argmax(1)
    return others[heads, place], np.abs(place - top) > 2


def _spike(offsets: Lines, top: Index) -> Array:
    """How far the mean weight of a diagonal stands above the higher of its neighbours."""
    mean = offsets.mass / np.maximum(offsets.rows, 1)
    around = np.pad(mean, ((0, 0), (1, 1)))
    heads = np.arange(len(top))
    return np.asarray(mean[heads, top] - np.maximum(around[heads, top], around[heads, top + 2]))
