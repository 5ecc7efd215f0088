"""`judge`: which heads changed, which drifted, which exchanged places."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from attncheck.regression.changes import Drift, HeadChange, Judgement, MeasureMove
from attncheck.regression.record import HeadRecord
from attncheck.regression.tolerance import (
    DIVERGENCE,
    VARIATION,
    Atol,
    Limit,
    Spread,
    limit_of,
    require_atol,
)
from attncheck.tolerances import Tolerance, tolerance_for

__all__ = ["judge"]

Distances = Mapping[str, tuple[float, float]]
"""Variation and divergence of each head by name, where weights were stored."""


def judge(
    before: Sequence[HeadRecord],
    after: Sequence[HeadRecord],
    *,
    dtypes: Sequence[str] = ("float32",),
    atol: Atol = None,
    runs: tuple[int, int] = (1, 1),
    distances: Distances | None = None,
) -> Judgement:
    """Compare the records of heads with what was recorded before.

    Args:
        before: Of the baseline.
        after: Of now.
        dtypes: Of both; the coarser one decides what rounding may do.
        atol: What a measure may move: one number for all, or some by name. Default: see
            `attncheck.regression.tolerance`.
        runs: How many runs both are means of. Where the baseline recorded the spread over its
            runs, that decides what is allowed.
        distances: Distance of the weights themselves, where they are held.

    Raises:
        ValueError: ``atol`` names no measure or is negative.
    """
    require_atol(atol)
    court = _Court(tolerance_for(*dtypes), atol, None)
    if any(head.spread for head in before):
        court = _Court(court.tolerance, atol, Spread(before, *runs))
    now = {head.name: head for head in after}
    was = {head.name: head for head in before}
    pairs = [(head, now[head.name]) for head in before if head.name in now]
    found = [court.compare(old, new, (distances or {}).get(old.name)) for old, new in pairs]
    changed = sorted((one for one in found if one.changed), key=lambda one: -one.ratio)
    rest = [one for one in found if not one.changed]
    drifted = sorted((one for one in rest if one.moves), key=lambda one: -one.size)
    return Judgement(
        total=len(before),
        changed=tuple(changed),
        drifted=tuple(drifted),
        missing=tuple(name for name in was if name not in now),
        extra=tuple(name for name in now if name not in was),
        permuted=tuple(_permutations(court, pairs, {one.name for one in changed})),
        drift=_drift(rest),
    )


class _Court:
    """The law of one judgement, and the comparison of two records under it."""

    def __init__(self, tolerance: Tolerance, atol: Atol, spread: Spread | None) -> None:
        self.tolerance, self.atol, self.spread = tolerance, atol, spread

    def compare(
        self, old: HeadRecord, new: HeadRecord, distance: tuple[float, float] | None = None
    ) -> HeadChange:
        """List what moved beyond rounding."""
        moves = [*self._moves(old, new)]
        for name, value in zip((VARIATION, DIVERGENCE), distance or (), strict=False):
            limit = limit_of(name, 0, 0, self.tolerance, self.atol)
            moves.append(MeasureMove(name, math.nan, math.nan, limit, value))
        # Exactly at a floor of zero or above the allowance: both are beyond rounding.
        kept = [move for move in moves if move.beyond_rounding]
        kept.sort(key=lambda move: -move.ratio)
        return HeadChange(old.name, tuple(kept), old.label, new.label)

    def _moves(self, old: HeadRecord, new: HeadRecord) -> Iterator[MeasureMove]:
        for name, value in old.values.items():
            after = new.values.get(name, math.nan)
            limit = self._limit(old, name, value, value if math.isnan(after) else after)
            yield MeasureMove(name, value, after, limit)
        for name, bins in old.shares.items():
            far = _variation(bins, new.shares[name]) if name in new.shares else math.nan
            yield MeasureMove(name, math.nan, math.nan, self._limit(old, name, 0, 0), far)

    def _limit(self, head: HeadRecord, measure: str, before: float, after: float) -> Limit:
        limit = limit_of(measure, before, after, self.tolerance, self.atol)
        given = self.atol.get(measure) if isinstance(self.atol, Mapping) else self.atol
        if self.spread is None or given is not None:
            return limit
        by_chance = self.spread.allowed(head, measure)
        if by_chance is None:
            return limit
        allowed = max(limit.floor, by_chance)
        return Limit(limit.floor, allowed, limit.scale)


def _variation(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """Total variation of two binned distributions."""
    places = before.keys() | after.keys()
    return 0.5 * sum(abs(before.get(place, 0.0) - after.get(place, 0.0)) for place in places)


def _drift(rest: Sequence[HeadChange]) -> Drift:
    moved = [one for one in rest if one.moves]
    worst = max(moved, key=lambda one: one.size, default=None)
    by_layer: dict[str, float] = {}
    for one in rest:
        layer = one.name.partition("H")[0]
        by_layer[layer] = max(by_layer.get(layer, 0.0), one.size)
    return Drift(
        heads=len(moved),
        total=len(rest),
        worst=worst.name if worst else "",
        size=worst.size if worst else 0.0,
        median=statistics.median([one.size for one in rest]) if rest else 0.0,
        by_layer=by_layer,
        relabelled=tuple(
            f"{one.name} {one.label_before} -> {one.label_after}" for one in rest if one.relabelled
        ),
    )


def _permutations(
    court: _Court, pairs: Sequence[tuple[HeadRecord, HeadRecord]], changed: set[str]
) -> Iterator[tuple[tuple[str, str], ...]]:
    """Find changed heads of one layer that took each other's places.

    The assignment of old heads to new ones that leaves the least change (Kuhn 1955) is taken apart
    into cycles; a cycle counts if every head in it is within what is allowed of its new place.
    """
    layers: dict[str, list[tuple[HeadRecord, HeadRecord]]] = {}
    for old, new in pairs:
        if old.name in changed:
            layers.setdefault(old.layer, []).append((old, new))
    for held in layers.values():
        if len(held) < 2:
            continue
        from scipy.optimize import linear_sum_assignment

        cost = np.array([[court.compare(old, new).ratio for _, new in held] for old, _ in held])
        _, place = linear_sum_assignment(np.minimum(cost, 1e6))
        for cycle in _cycles([int(index) for index in place]):
            if len(cycle) > 1 and all(cost[i, place[i]] <= 1 for i in cycle):
                yield tuple((held[i][0].name, held[place[i]][1].name) for i in cycle)


def _cycles(place: Sequence[int]) -> Iterator[list[int]]:
    """Take a permutation apart.

    Example:
        >>> list(_cycles([1, 0, 2]))
        [[0, 1], [2]]
    """
    seen: set[int] = set()
    for start in range(len(place)):
        cycle, at = [], start
        while at not in seen:
            seen.add(at)
            cycle.append(at)
            at = place[at]
        if cycle:
            yield cycle
