"""The parts a head is made of: columns, diagonals, bands, blocks, patterns of tokens.

Parts leave traces in each other's sums: a column crosses every diagonal once, a diagonal every
column, and each takes mass from what chance expects elsewhere. So columns and diagonals are found
in turns, each with the traces of the other taken off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from attncheck.patterns import thresholds as t
from attncheck.patterns.chance import Flags, bennett, deviations
from attncheck.patterns.evidence import PatternEvidence
from attncheck.patterns.position import Position, find_position
from attncheck.patterns.stripes import Stripe, find_stripes
from attncheck.patterns.sums import Array, lift

__all__ = ["Component", "find_components"]

ROUNDS: Final = 3


@dataclass(frozen=True, eq=False)
class Component:
    """One part of every head of a layer, each field ``(head,)``.

    Attributes:
        kind: Parts of one kind do not make a mixture: ``"first"``, ``"column"``, ``"position"``,
            ``"second position"``, ``"block"``, ``"token"``.
        names: The pattern it would be called.
        strength: Share of the attention it explains in the rows where it can occur.
        real: Whether it is there at all: strong enough and beyond chance.
        resting: For patterns of tokens: the strength of the first key in the rows with a target.
    """

    kind: str
    names: NDArray[np.str_]
    strength: Array
    real: Flags
    resting: Array | None = None


def find_components(evidence: PatternEvidence) -> list[Component]:
    """Return what the heads are made of; several components may be real in one head."""
    raw = evidence.columns.mass - evidence.columns.chance
    columns = find_stripes(evidence, raw)
    position = None
    if evidence.positional and evidence.offsets.mass.shape[1]:
        for _ in range(ROUNDS):
            excess = _off_diagonals(evidence, columns)
            position = find_position(evidence, excess, _in_columns(evidence, columns))
            excess = raw - _on_columns(evidence, position)
            columns = find_stripes(evidence, excess, position.square)
    found = [
        Component(kind, np.full(evidence.n_heads, name), column.strength, column.real)
        for kind, name, column in zip(
            ("first", "column"), ("first_token", "broadcast"), columns, strict=False
        )
    ]
    if position is not None:
        found += _with_blocks(evidence, position, columns)
    return found + _token_patterns(evidence)


def _off_diagonals(evidence: PatternEvidence, columns: tuple[Stripe, ...]) -> Array:
    """Mass above chance by offset, the traces of the columns taken off."""
    offsets, heads = evidence.offsets, np.arange(evidence.n_heads)
    excess = offsets.mass - offsets.chance
    for column in columns:
        strength = np.where(column.real, column.strength, 0)[:, None]
        crossed = evidence.spans.on_diagonals(column.index, offsets.zero, excess.shape[1])
        crossed = np.minimum(crossed, offsets.rows)  # fewer in a window of attention
        seen = evidence.columns.rows[heads, column.index] / np.maximum(evidence.rows, 1)
        excess = excess - strength * (crossed - offsets.chance * seen[:, None])
    return np.asarray(excess)


def _on_columns(evidence: PatternEvidence, position: Position) -> Array:
    """What diagonals add to the mass above chance of each column."""
    real = np.where(position.real, 1.0, 0.0)[:, None]
    profile = position.profile * real
    width = evidence.columns.mass.shape[1]
    crossed = evidence.spans.on_columns(profile, evidence.offsets.zero, width)
    return np.asarray(crossed - profile.sum(1, keepdims=True) * evidence.columns.chance)


def _in_columns(evidence: PatternEvidence, columns: tuple[Stripe, ...]) -> Array:
    """Squared weights that the columns explain."""
    heads = np.arange(evidence.n_heads)
    found = np.zeros(len(heads))
    for column in columns:
        rows = evidence.columns.rows[heads, column.index]
        found += np.where(column.real, column.strength**2 * rows, 0)
    return found


def _with_blocks(
    evidence: PatternEvidence, position: Position, columns: tuple[Stripe, ...]
) -> list[Component]:
    """Decide between a band and blocks; beside blocks only what stands out of them counts."""
    beside, rows = evidence.beside, np.maximum(evidence.rows, 1)
    gained = beside.mass - beside.chance
    strength = np.nan_to_num(lift(beside)) * beside.rows / rows
    spiky = position.spike > t.CLEAR_LINE
    band = position.widest - np.where(spiky, position.above, 0)
    largest = np.sqrt(np.maximum(evidence.square, 1e-12) / rows)
    far = bennett(gained, np.maximum(beside.variance, 1e-12 * rows), largest)
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
        far = deviations(evidence, sums.mass - sums.chance, sums)
        real = (far >= t.Z_NAMED) & (sums.rows >= t.MIN_TOKEN_ROWS) & (strength >= t.MIN_STRENGTH)
        resting = np.nan_to_num(lift(evidence.resting[name]))
        found.append(Component("token", np.full(evidence.n_heads, name), strength, real, resting))
    return found
