"""From evidence to labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from attncheck.patterns.evidence import PatternEvidence
from attncheck.patterns.labels import HeadLabel, HeadLabels, PatternScore

__all__ = ["classify_evidence"]


def classify_evidence(
    evidence: Sequence[PatternEvidence], heads: Sequence[Sequence[int]], layers: Sequence[int]
) -> HeadLabels:
    """Name the heads of some layers from their evidence alone.

    Args:
        evidence: One per layer.
        heads: Numbers of the heads in each.
        layers: Number of each layer.
    """
    labels = []
    for held, numbers, layer in zip(evidence, heads, layers, strict=True):
        table = {name: (held.mass(name), held.chance(name), held.lift(name)) for name in held.names}
        for index, head in enumerate(numbers):
            ranked = sorted(
                (
                    PatternScore(
                        name, float(m[index]), float(c[index]), float(x[index]), float(x[index])
                    )
                    for name, (m, c, x) in table.items()
                    if not np.isnan(x[index])
                ),
                key=lambda score: -score.strength,
            )
            labels.append(HeadLabel(layer, head, ranked[0].pattern, 0.0, tuple(ranked)))
    return HeadLabels(labels)
