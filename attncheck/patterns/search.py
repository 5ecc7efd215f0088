"""Searches for the parameter of a pattern: which offset, which column, how wide a band."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from attncheck.patterns.sums import SUMS, Array, Lines, Sums

if TYPE_CHECKING:
    from attncheck.patterns.evidence import PatternEvidence

__all__ = ["best", "significance"]

NEAR = (-1, 0, 1)
"""Offsets that are patterns of their own."""


def significance(sums: Sums | Lines) -> Array:
    """Mass above chance in standard deviations of what shuffled rows would give."""
    excess = sums.mass - sums.chance
    with np.errstate(invalid="ignore"):  # infinite weights have no significance
        return excess / np.sqrt(np.maximum(sums.variance, 1e-12 * np.maximum(sums.rows, 1)))


def best(evidence: PatternEvidence, name: str) -> tuple[Sums, NDArray[np.int64]]:
    """Return the sums of the best parameter of each head, and that parameter, ``(head,)``.

    ``offset`` and ``broadcast`` are the diagonal and the column with most mass above chance (those
    aside that have a name of their own: self, previous, next, first). ``local`` is the width at
    which the mass of the band stands out most.
    """
    if name == "offset":
        return _strongest(evidence.offsets, NEAR)
    if name == "broadcast":
        return _strongest(evidence.columns, (0,))
    return _pick_line(*_bands(evidence.offsets))


def _strongest(lines: Lines, excluded: tuple[int, ...]) -> tuple[Sums, NDArray[np.int64]]:
    excess = np.where(lines.rows > 0, lines.mass - lines.chance, -np.inf)
    excess[:, np.isin(lines.numbers, excluded)] = -np.inf
    return _pick_line(lines, excess)


def _bands(offsets: Lines) -> tuple[Lines, Array]:
    """Sums of every band, by width, and how far each stands out."""
    widths = max(1, max(offsets.zero, offsets.mass.shape[1] - 1 - offsets.zero))
    room = offsets.aligned(widths, 2 * widths + 1)
    held = {}
    for name in SUMS:
        lines = getattr(room, name)
        sides = lines[:, widths + 1 :] + lines[:, widths - 1 :: -1]
        held[name] = lines[:, widths : widths + 1] + np.cumsum(sides, axis=1)
    # Every usable row sees itself, so it belongs to every band.
    held["rows"] = np.broadcast_to(room.rows[:, widths : widths + 1], held["mass"].shape)
    bands = Lines(**held, zero=-1)
    return bands, significance(bands)


def _pick_line(lines: Lines, score: Array) -> tuple[Sums, NDArray[np.int64]]:
    heads = np.arange(lines.mass.shape[0])
    if not lines.mass.shape[1]:
        nothing = np.zeros(len(heads))
        return Sums(nothing, nothing, nothing, nothing), np.zeros(len(heads), dtype=np.int64)
    index = score.argmax(axis=1)
    found = Sums(*(getattr(lines, name)[heads, index] for name in SUMS))
    return found, lines.numbers[index]
