"""The columns of each head: the first visible key, and the strongest other one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attncheck.patterns import thresholds as t
from attncheck.patterns.chance import Flags, Index, deviations, searched, strength_of
from attncheck.patterns.evidence import PatternEvidence
from attncheck.patterns.sums import Array

__all__ = ["Stripe", "find_stripes"]


@dataclass(frozen=True, eq=False)
class Stripe:
    """One column of every head of a layer, each field ``(head,)``.

    Attributes:
        index: Which column.
        strength: Share of the attention it holds above chance in the rows that see it.
        real: Whether it is there at all: strong enough and beyond chance.
        above: Its mass above chance.
    """

    index: Index
    strength: Array
    real: Flags
    above: Array


def find_stripes(
    evidence: PatternEvidence, excess: Array, known: Array | float = 0
) -> tuple[Stripe, ...]:
    """The first column, and the strongest other one, from mass above chance."""
    zero = np.zeros(evidence.n_heads, dtype=np.int64)
    first = _stripe(evidence, excess, zero, t.Z_NAMED, known)
    if excess.shape[1] < 2:
        return (first,)
    other = excess[:, 1:].argmax(1) + 1
    return first, _stripe(evidence, excess, other, searched(excess.shape[1]), known)


def _stripe(
    evidence: PatternEvidence, excess: Array, index: Index, z: float, known: Array | float
) -> Stripe:
    heads, lines, rows = np.arange(len(index)), evidence.columns, evidence.rows
    above, line = excess[heads, index], lines.of_heads(index)
    seen = line.rows
    strength = strength_of(above, seen, line.chance)
    far = deviations(evidence, above, line, known)
    share = above / np.maximum(rows, 1)
    real = (strength >= t.MIN_STRENGTH) & (share >= t.MIN_STRENGTH / 2) & (far >= z)
    return Stripe(index, np.clip(strength, 0, 1), real & (seen >= np.minimum(3, rows)), above)
