"""The parts a head is made of: columns, diagonals, bands, blocks, patterns of tokens.

Parts leave traces in each other's sums: a column crosses every diagonal once, a diagonal every
column, and each takes mass from what chance expects elsewhere. So columns and diagonals are found
in turns, each with the traces of the other taken off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from attncheck.patterns import thresholds as t
from attncheck.patterns.evidence import SUMS, Array, Lines, PatternEvidence, Sums, lift

__all__ = ["Component", "find_components"]

NAME_OF: Final = {0: "diagonal", 1: "previous_token", -1: "next_token"}
ROUNDS: Final = 3

Flags = NDArray[np.bool_]
Index = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Component:
    """One part of every head of a layer, each field ``(head,)``.

    Attributes:
        kind: Parts of one kind do not make a mixture: ``"first"``, ``"column"``, ``"position"``,
            ``"second position"``, ``"block"``, ``"token"``.
        names: The pattern it would be called.
        strength: Share of the attention it explains in the rows where it can occur.
        real: Whether it is there at all: strong enough and beyond chance.
    """

    kind: str
    names: NDArray[np.str_]
    strength: Array
    real: Flags


@dataclass(frozen=True, eq=False)
class _Layout:
    """Which row a column and a diagonal meet in, and how often."""

    sequences: Array
    n_key: int
    first_row: int

    @classmethod
    def of(cls, evidence: PatternEvidence) -> _Layout:
        sequences = np.maximum(evidence.sequences, 1)
        n_key = int(np.count_nonzero((evidence.columns.rows > 0).any(axis=0)))
        return cls(sequences, n_key, n_key - round(float((evidence.rows / sequences).max())))

    def on_diagonals(self, column: Index, numbers: Index) -> Array:
        """Whether a column of each head crosses each diagonal: ``(head, offset)``, 0 or 1."""
        row = column[:, None] + numbers
        return ((row >= self.first_row) & (row < self.n_key)).astype(float)

    def on_columns(self, profile: Array, zero: int, width: int) -> Array:
        """Sum of a profile over diagonals that cross each column: ``(head, column)``."""
        sums = np.pad(np.cumsum(profile, axis=1), ((0, 0), (1, 0)))
        columns = np.arange(width)
        low = np.clip(self.first_row - columns + zero, 0, profile.shape[1])
        high = np.clip(self.n_key - columns + zero, 0, profile.shape[1])
        return np.asarray(sums[:, high] - sums[:, low])


@dataclass(frozen=True, eq=False)
class _Column:
    index: Index
    strength: Array
    real: Flags
    above: Array


@dataclass(frozen=True, eq=False)
class _Position:
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


def find_components(evidence: PatternEvidence) -> list[Component]:
    """Return what the heads are made of; several components may be real in one head."""
    layout = _Layout.of(evidence)
    raw = evidence.columns.mass - evidence.columns.chance
    columns = _find_columns(evidence, raw)
    position = None
    if evidence.positional and evidence.offsets.mass.shape[1]:
        for _ in range(ROUNDS):
            excess = _off_diagonals(evidence, columns, layout)
            position = _find_position(evidence, excess, _in_columns(evidence, columns))
            excess = raw - _on_columns(evidence, position, layout)
            columns = _find_columns(evidence, excess, position.square)
    found = [
        Component(kind, np.full(evidence.n_heads, name), column.strength, column.real)
        for kind, name, column in zip(
            ("first", "column"), ("first_token", "broadcast"), columns, strict=False
        )
    ]
    if position is not None:
        found += _with_blocks(evidence, position, columns)
    return found + _token_patterns(evidence)


def _searched(candidates: int) -> float:
    return t.Z_SEARCHED + math.sqrt(2 * math.log(max(2, candidates)))


def _strength(excess: Array, rows: Array, chance: Array) -> Array:
    """Lift from the mass above chance; 0 where there is no room above chance."""
    room = rows - chance
    return np.where(room > 1e-9 * rows, excess / np.maximum(room, 1e-9), 0)


def _deviations(
    evidence: PatternEvidence, excess: Array, sums: Any, known: Array | float = 0
) -> Array:
    """How far mass above chance lies beyond what shuffled rows would give.

    ``known`` is the part of the squared weights that other parts explain: no chance is in it.

    In standard deviations of a normal distribution of the same probability, by Bennett's
    inequality: sums of a few concentrated rows have heavier tails than their variance says.
    """
    rows = np.maximum(sums.rows, 1e-9)
    unknown = np.maximum(evidence.square - known, evidence.inverse)
    free = np.maximum(unknown - evidence.inverse, 0)
    free = free / np.maximum(evidence.square - evidence.inverse, 1e-12)
    largest = np.sqrt(np.maximum(unknown, 1e-12) / np.maximum(evidence.rows, 1))
    shape = (-1, *(1,) * (excess.ndim - 1))
    largest, free = largest.reshape(shape), np.clip(free, 0.1, 1).reshape(shape)
    variance = sums.variance * free * (1 - sums.chance / rows)
    return _bennett(excess, np.maximum(variance, 1e-12 * rows), largest)


def _bennett(excess: Array, variance: Array, largest: Array) -> Array:
    """Deviations of a normal distribution as improbable as Bennett's bound for the excess."""
    ratio = np.maximum(excess, 0) * largest / variance
    exponent = variance / largest**2 * ((1 + ratio) * np.log1p(ratio) - ratio)
    return np.asarray(np.sqrt(2 * exponent))


def _find_columns(
    evidence: PatternEvidence, excess: Array, known: Array | float = 0
) -> tuple[_Column, ...]:
    """The first column, and the strongest other one, from mass above chance."""
    zero = np.zeros(evidence.n_heads, dtype=np.int64)
    first = _column(evidence, excess, zero, t.Z_NAMED, known)
    if excess.shape[1] < 2:
        return (first,)
    other = excess[:, 1:].argmax(1) + 1
    return first, _column(evidence, excess, other, _searched(excess.shape[1]), known)


def _column(
    evidence: PatternEvidence, excess: Array, index: Index, z: float, known: Array | float
) -> _Column:
    heads, lines, rows = np.arange(len(index)), evidence.columns, evidence.rows
    above, line = excess[heads, index], _line(lines, index)
    seen = line.rows
    strength = _strength(above, seen, line.chance)
    far = _deviations(evidence, above, line, known)
    share = above / np.maximum(rows, 1)
    real = (strength >= t.MIN_STRENGTH) & (share >= t.MIN_STRENGTH / 2) & (far >= z)
    return _Column(index, np.clip(strength, 0, 1), real & (seen >= np.minimum(3, rows)), above)


def _line(lines: Lines, index: Index) -> Sums:
    heads = np.arange(len(index))
    return Sums(*(getattr(lines, name)[heads, index] for name in SUMS))


def _off_diagonals(
    evidence: PatternEvidence, columns: tuple[_Column, ...], layout: _Layout
) -> Array:
    """Mass above chance by offset, the traces of the columns taken off."""
    offsets, heads = evidence.offsets, np.arange(evidence.n_heads)
    excess = offsets.mass - offsets.chance
    for column in columns:
        strength = np.where(column.real, column.strength, 0)[:, None]
        crossed = layout.on_diagonals(column.index, offsets.numbers) * layout.sequences[:, None]
        seen = evidence.columns.rows[heads, column.index] / np.maximum(evidence.rows, 1)
        excess = excess - strength * (crossed - offsets.chance * seen[:, None])
    return np.asarray(excess)


def _on_columns(evidence: PatternEvidence, position: _Position, layout: _Layout) -> Array:
    """What diagonals add to the mass above chance of each column."""
    real = np.where(position.real, 1.0, 0.0)[:, None]
    profile = position.profile * real
    width = evidence.columns.mass.shape[1]
    crossed = layout.on_columns(profile, evidence.offsets.zero, width)
    crossed = crossed * layout.sequences[:, None]
    return np.asarray(crossed - profile.sum(1, keepdims=True) * evidence.columns.chance)


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


def _in_columns(evidence: PatternEvidence, columns: tuple[_Column, ...]) -> Array:
    """Squared weights that the columns explain."""
    heads = np.arange(evidence.n_heads)
    found = np.zeros(len(heads))
    for column in columns:
        rows = evidence.columns.rows[heads, column.index]
        found += np.where(column.real, column.strength**2 * rows, 0)
    return found


def _find_position(evidence: PatternEvidence, excess: Array, known: Array) -> _Position:
    """Choose between one diagonal, two, and a band."""
    offsets, rows, heads = evidence.offsets, evidence.rows, np.arange(evidence.n_heads)
    zero, numbers = offsets.zero, offsets.numbers
    common = offsets.rows >= t.MIN_ROWS_SHARE * rows[:, None]
    top = np.where(common, excess, -np.inf).argmax(1)
    above = excess[heads, top]
    bands = _windows(excess, zero)
    sums: dict[str, Any] = {name: _windows(getattr(offsets, name), zero) for name in SUMS}
    sums["rows"] = np.broadcast_to(rows[:, None], bands.shape)
    far = _deviations(evidence, bands, Lines(**sums), known)
    clear = far.argmax(1)
    band, chance = bands[heads, clear], sums["chance"][heads, clear]
    widest = np.maximum(bands.max(1), above)

    # Single diagonals against the band, both with the chance mass that the band has replaced.
    inside_band = np.clip(_strength(band, rows, chance), 0, 1)
    held = excess + inside_band[:, None] * offsets.chance
    held = np.where(common, held / np.maximum(offsets.rows, 1), -np.inf)
    own = held[heads, top]
    whole = np.maximum(inside_band, own)
    second, apart = _second_line(held, top)
    pair = apart & (second >= t.MIXED_RATIO * own)
    pair &= own + second >= t.TWO_LINES_SHARE * whole
    one_line = (own >= t.SINGLE_SHARE * whole) | pair

    best = _line(offsets, top)
    line = _strength(above, best.rows, best.chance)
    near = np.isin(numbers[top], list(NAME_OF))
    needed = np.where(near, t.Z_NAMED, _searched(excess.shape[1]))
    real_line = _deviations(evidence, above, best, known) >= needed
    strength = np.where(one_line, line, _strength(band, rows, chance))
    real = np.where(one_line, real_line, far[heads, clear] >= t.Z_BAND)
    real &= (strength >= t.MIN_STRENGTH) & (np.maximum(band, above) >= t.MIN_STRENGTH / 2 * rows)
    names = np.array([NAME_OF.get(int(numbers[k]), "offset") for k in top])
    profile = np.where(excess > 0, excess, 0) / np.maximum(offsets.rows, 1)
    inside = np.abs(numbers) <= (clear % max(1, bands.shape[1] // (3 if zero else 1)) + 1)[:, None]
    only = np.arange(excess.shape[1]) == top[:, None]
    profile = np.where(np.where(one_line[:, None], only, inside), profile, 0)
    return _Position(
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


def _with_blocks(
    evidence: PatternEvidence, position: _Position, columns: tuple[_Column, ...]
) -> list[Component]:
    """Decide between a band and blocks; beside blocks only what stands out of them counts."""
    beside, rows = evidence.beside, np.maximum(evidence.rows, 1)
    gained = beside.mass - beside.chance
    strength = np.nan_to_num(lift(beside)) * beside.rows / rows
    spiky = position.spike > t.CLEAR_LINE
    band = position.widest - np.where(spiky, position.above, 0)
    largest = np.sqrt(np.maximum(evidence.square, 1e-12) / rows)
    far = _bennett(gained, np.maximum(beside.variance, 1e-12 * rows), largest)
    positions = rows / np.maximum(evidence.sequences, 1)
    needed = t.Z_BLOCK + t.Z_BLOCK_GROWTH * np.log(positions)
    block = (far >= needed) & (gained >= t.BLOCK_BESIDE_BAND * band)
    block &= strength >= t.MIN_BLOCK_STRENGTH
    whole = evidence.templates["block"]
    block &= whole.mass - whole.chance >= position.widest
    spread = evidence.capacity / rows + np.log(np.maximum(whole.chance / rows, 1e-12))
    block &= evidence.entropy / rows >= t.FILLED * strength * np.maximum(spread, 0)
    for column in columns[1:]:
        block &= whole.mass - whole.chance >= np.where(column.real, column.above, 0)
    heads = evidence.n_heads
    real = np.where(block, position.spike >= t.MIN_STRENGTH, position.real)
    own = np.where(block, np.clip(position.spike, 0, 1), position.strength)
    second = np.where(block, 0, position.second)
    return [
        Component("position", position.names, own, real),
        Component("block", np.full(heads, "block"), np.clip(strength, 0, 1), block),
        Component("second position", np.full(heads, "offset"), second, second >= t.MIN_MIXED),
    ]


def _token_patterns(evidence: PatternEvidence) -> list[Component]:
    found = []
    for name, sums in evidence.templates.items():
        if name == "block":
            continue
        strength = np.nan_to_num(lift(sums))
        far = _deviations(evidence, sums.mass - sums.chance, sums)
        real = (far >= t.Z_NAMED) & (sums.rows >= t.MIN_TOKEN_ROWS) & (strength >= t.MIN_STRENGTH)
        found.append(Component("token", np.full(evidence.n_heads, name), strength, real))
    return found
