"""Row measures from a tally: the same values that `METRICS` reads from weights."""

from __future__ import annotations

from collections.abc import Mapping
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
    def of_all(cls, found: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Totals]:
        """Reduce values ``(batch, head, query)`` over the rows that count, measure by measure.

        What was found leaves the device once, for all of them.

        Args:
            found: Values and which of them count, by name.
        """
        masks = {id(counted): counted for _, counted in found.values()}
        some = {number for number, counted in masks.items() if not bool(counted.all())}
        counts = {number: counted.sum((0, 2)) for number, counted in masks.items()}
        sums, most = [], []
        for values, counted in found.values():
            left_out = ~counted if id(counted) in some else None
            sums.append(_without(values, left_out, 0).sum((0, 2)))
            most.append(_without(values, left_out, -torch.inf).amax((0, 2)))
        each = torch.stack([counts[id(counted)] for _, counted in found.values()])
        every = (torch.stack(sums), each, torch.stack(most))
        parts = zip(*(held.cpu().numpy() for held in every), strict=True)
        return {name: cls(*part) for name, part in zip(found, parts, strict=True)}

    def merge(self, other: Totals) -> Totals:
        """Add the rows of other sequences."""
        return Totals(
            self.sums + other.sums,
            self.counts + other.counts,
            np.maximum(self.maxima, other.maxima),
        )


def _without(values: Tensor, left_out: Tensor | None, instead: float) -> Tensor:
    return values if left_out is None else values.masked_fill(left_out, instead)


def measures_of(tally: Tally) -> dict[str, Totals]:
    """Reduce every measure but Gini, which needs its rows sorted."""
    valid, rows = tally.valid, tally.rows
    held = {name: rows[name].double() for name in ("top", "mass", "norm", "first", "share")}
    share, mass = held["share"], held["mass"]
    sink = tally.source.sink_mass(share)
    entropy = tally.entropy
    distant = valid if tally.offsets is not None else torch.zeros_like(valid)
    found = {
        "row_sum_error": ((mass * share + sink - 1).abs(), valid),
        "entropy": (entropy, valid),
        "normalized_entropy": (entropy / tally.chances.highest, tally.usable),
        "effective_keys": (entropy.exp(), valid),
        "max_weight": (held["top"] * share, valid),
        "participation_ratio": ((mass / held["norm"]).square(), valid),
        "mean_distance": (rows["far"].double() / mass, distant),
        "sink_mass": (held["first"] * share + sink, _behind_first(tally)),
        "future_mass": (rows["later"].double() * share, distant),
    }
    return Totals.of_all(found)


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
