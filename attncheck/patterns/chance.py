"""What chance alone could do, and how far beyond it something lies."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from attncheck.patterns import thresholds as t
from attncheck.patterns.evidence import PatternEvidence
from attncheck.patterns.sums import Array

__all__ = ["Flags", "Index", "bennett", "deviations", "searched", "strength_of"]

Flags: TypeAlias = NDArray[np.bool_]
Index: TypeAlias = NDArray[np.int64]


def searched(candidates: int) -> float:
    """Deviations that the best of so many candidates needs."""
    return t.Z_SEARCHED + math.sqrt(2 * math.log(max(2, candidates)))


def strength_of(excess: Array, rows: Array, chance: Array) -> Array:
    """Lift from the mass above chance; 0 where there is no room above chance."""
    room = rows - chance
    return np.where(room > 1e-9 * rows, excess / np.maximum(room, 1e-9), 0)


def deviations(
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
    return bennett(excess, np.maximum(variance, 1e-12 * rows), largest)


def bennett(excess: Array, variance: Array, largest: Array) -> Array:
    """Deviations of a normal distribution as improbable as Bennett's bound for the excess."""
    ratio = np.maximum(excess, 0) * largest / variance
    exponent = variance / largest**2 * ((1 + ratio) * np.log1p(ratio) - ratio)
    return np.asarray(np.sqrt(2 * exponent))
