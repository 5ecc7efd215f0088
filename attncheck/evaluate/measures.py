"""Row measures from a tally: the same values that `METRICS` reads from weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attncheck.evaluate.tally import Tally

__all__ = ["Totals", "join", "measures_of"]

Array: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Totals:
    """Sum, count and maximum of a measure over rows, each ``(head,)``."""

    sums: Array
    counts: npt.NDArray[np.int64]
    maxima: Array

    @classmethod
    def of(cls, values: Tensor, counted: Tensor) -> Totals:
        """Reduce ``(batch, head, query)`` over the rows that count."""
        left_out = ~counted
        summed = most = values
        if bool(left_out.any()):
            summed, most = values.masked_fill(left_out, 0), values.masked_fill(left_out, -torch.inf)
        return cls(
            summed.sum((0, 2)).cpu().numpy(),
            counted.sum((0, 2)).cpu().numpy(),
            most.amax((0, 2)).cpu().numpy(),
        )

    def merge(self, other: Totals) -> Totals:
        """Add the rows of other sequences."""
        return Totals(
            self.sums + other.sums,
            self.counts + other.counts,
            np.maximum(self.maxima, other.maxima),
        )


def measures_of(tally: Tally) -> dict[str, Totals]:
    """Reduce every measure but Gini, which needs its rows sorted."""
    reach, valid, rows = tally.reach, tally.valid, tally.rows
    seen = reach.seen.double()
    held = {name: rows[name].double() for name in ("top", "mass", "norm", "first", "share")}
    share, mass = held["share"], held["mass"]
    sink = tally.source.sink_mass(share)
    entropy = tally.entropy
    distant = valid if tally.offsets is not None else torch.zeros_like(valid)
    found = {
        "row_sum_error": ((mass * share + sink - 1).abs(), valid),
        "entropy": (entropy, valid),
        "normalized_entropy": (entropy / seen.clamp(min=1).log(), valid & (reach.seen >= 2)),
        "effective_keys": (entropy.exp(), valid),
        "max_weight": (held["top"] * share, valid),
        "participation_ratio": ((mass / held["norm"]).square(), valid),
        "mean_distance": (rows["far"].double() / mass, distant),
        "sink_mass": (held["first"] * share + sink, _behind_first(tally)),
        "future_mass": (rows["later"].double() * share, distant),
    }
    return {name: Totals.of(*measured) for name, measured in found.items()}


def _behind_first(tally: Tally) -> Tensor:
    """Rows whose mass on the first key is measured; see `attncheck.metrics`."""
    reach, first = tally.reach, tally.first[..., None]
    counted = tally.valid
    if tally.offsets is not None:
        counted = counted & (reach.positions > first)
    if tally.source.sinks is None:
        counted = counted & sees_first(tally)
    return counted


def sees_first(tally: Tally) -> Tensor:
    """Which rows see the first key that any row sees: bool ``(batch or 1, head or 1, query)``."""
    # The first key is nobody's hidden key between visible ones: whoever sees it begins there.
    return (tally.reach.low == tally.first[..., None]) & (tally.reach.seen > 0)


def join(parts: list[dict[str, Totals]]) -> dict[str, Totals]:
    """Add the parts of a batch."""
    return {name: reduce(Totals.merge, (part[name] for part in parts)) for name in parts[0]}
