"""`HeadRecord`: what is kept of one head, in numbers that move no more than its attention does.

Kept are row measures, the mass of patterns that are looked up, and where the mass lies: shares by
distance and by key, in bins that widen with the distance. A pattern that is searched for (the best
offset, band, column or segmentation) jumps from one candidate to the next under rounding, and is
told by these shares instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from attncheck.attention import head_name
from attncheck.metrics import METRICS
from attncheck.patterns import PATTERNS
from attncheck.patterns.sums import Lines
from attncheck.profile import HeadProfile, LayerProfile

__all__ = ["MEASURES", "SHARES", "HeadRecord", "records_of"]

SEARCHED: Final = ("offset", "local", "broadcast", "block")
MEASURES: Final = (*METRICS, *(name for name in PATTERNS if name not in SEARCHED))
"""Measures that a record may hold."""

SHARES: Final[tuple[str, ...]] = ("by_distance", "by_key")
"""Distributions that a record may hold."""


@dataclass(frozen=True)
class HeadRecord:
    """What is kept of one head.

    Attributes:
        name: ``"L5H1"``; of a later call of the same module, ``"L5H1 call 1"``.
        label: What the head does.
        values: Value of each measure that the head has.
        shares: Share of the attention in each bin, by name of the distribution; bins by number.
        spread: Standard deviation over runs of measures and distributions; empty for one run.
    """

    name: str
    label: str
    values: Mapping[str, float]
    shares: Mapping[str, Mapping[int, float]]
    spread: Mapping[str, float] = field(default_factory=dict)

    @property
    def layer(self) -> str:
        """The layer's part of the name."""
        return self.name.partition("H")[0] + self.name.partition(" ")[1] + self.call

    @property
    def call(self) -> str:
        """``"call 1"`` of a later call, else empty."""
        return self.name.partition(" ")[2]


def records_of(profiles: Sequence[HeadProfile]) -> tuple[HeadRecord, ...]:
    """Record every head, as the mean over runs.

    Args:
        profiles: One per run, all of the same heads.

    Raises:
        ValueError: The runs are not of the same heads.

    Example:
        >>> import torch
        >>> from attncheck import profile_attention
        >>> record = records_of([profile_attention(torch.eye(16))])[0]
        >>> record.name, record.label, record.values["max_weight"], record.shares["by_distance"]
        ('L0H0', 'diagonal', 1.0, {0: 1.0})
    """
    runs = [_single(profile) for profile in profiles]
    names = [record.name for record in runs[0]]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"attention: two heads are named {twice}; give each layer its own index")
    for number, run in enumerate(runs):
        if [record.name for record in run] != names:
            raise ValueError(f"runs: run {number} holds other heads than run 0")
    return tuple(_over_runs(heads) for heads in zip(*runs, strict=True))


def _single(profile: HeadProfile) -> list[HeadRecord]:
    labels = iter(profile.classify())
    found = []
    for layer in profile.layers:
        values = {name: layer.value(name) for name in MEASURES if name in layer.measures}
        shares = _shares(layer)
        for place, head in enumerate(layer.heads):
            found.append(
                HeadRecord(
                    name=head_name(layer.index, head) + (f" call {layer.call}" * bool(layer.call)),
                    label=next(labels).label,
                    values={n: float(v[place]) for n, v in values.items() if np.isfinite(v[place])},
                    shares={n: _bins(numbers, v[place]) for n, (numbers, v) in shares.items()},
                )
            )
    return found


def _shares(layer: LayerProfile) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Mass of the average row by distance and by key: bins ``(line,)``, mass ``(head, line)``."""
    evidence = layer.evidence
    rows = np.maximum(evidence.rows, 1)[:, None]
    lines: dict[str, Lines] = {"by_key": evidence.columns}
    if evidence.positional:
        lines["by_distance"] = evidence.offsets
    return {name: (_bin_of(held.numbers), held.mass / rows) for name, held in lines.items()}


def _bin_of(numbers: NDArray[Any]) -> NDArray[Any]:
    """Bin of a distance or key: 0 to 4 have their own, then two per doubling; sign is kept.

    Example:
        >>> _bin_of(np.array([-9, -1, 0, 3, 4, 5, 6, 8, 1024])).tolist()
        [-6, -1, 0, 3, 4, 4, 5, 6, 20]
    """
    size = np.abs(numbers)
    wide = 4 + np.floor(2 * np.log2(np.maximum(size, 4) / 4)).astype(np.int64)
    return np.asarray(np.sign(numbers) * np.where(size < 4, size, wide))


def _bins(numbers: NDArray[Any], mass: NDArray[Any]) -> dict[int, float]:
    """Add the mass of each bin up; empty bins are left out."""
    places, inverse = np.unique(numbers, return_inverse=True)
    totals = np.bincount(inverse, weights=mass, minlength=len(places))
    return {int(place): float(total) for place, total in zip(places, totals, strict=True) if total}


def _over_runs(records: Sequence[HeadRecord]) -> HeadRecord:
    """Average one head over runs; a measure that some run lacks is left out."""
    first = records[0]
    if len(records) == 1:
        return first
    values, spread = {}, {}
    for name in first.values:
        if all(name in record.values for record in records):
            drawn = [record.values[name] for record in records]
            values[name], spread[name] = float(np.mean(drawn)), float(np.std(drawn, ddof=1))
    shares = {}
    for name in first.shares:
        held = [record.shares[name] for record in records if name in record.shares]
        bins = sorted({place for one in held for place in one})
        table = np.array([[one.get(place, 0.0) for place in bins] for one in held])
        centre = table.mean(0)
        far = 0.5 * np.abs(table - centre).sum(1)
        shares[name] = {place: float(m) for place, m in zip(bins, centre, strict=True)}
        spread[name] = float(np.sqrt((far**2).sum() / (len(held) - 1))) if len(held) > 1 else 0.0
    labels = [record.label for record in records]
    label = max(dict.fromkeys(labels), key=labels.count)
    return HeadRecord(first.name, label, values, shares, spread)
