"""What judging a baseline finds, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from attncheck.regression.tolerance import Limit

__all__ = ["Drift", "HeadChange", "Judgement", "MeasureMove"]


@dataclass(frozen=True)
class MeasureMove:
    """One measure of one head, before and after.

    Attributes:
        measure: Its name.
        before: In the baseline; NaN where the head had none.
        after: Now; NaN where the head has none.
        limit: How far it may move.
        distance: How far it has moved, for distributions, which have no value of their own.
    """

    measure: str
    before: float
    after: float
    limit: Limit
    distance: float | None = None

    @property
    def change(self) -> float:
        """What has been added, in the unit of the measure."""
        return self.after - self.before if self.distance is None else self.distance

    @property
    def ratio(self) -> float:
        """Size of the change by what is allowed; infinite where a value came or went."""
        if math.isnan(self.change):
            return math.inf
        if self.limit.allowed == 0:
            return math.inf if self.change else 0.0
        return abs(self.change) / self.limit.allowed

    @property
    def size(self) -> float:
        """Size of the change in shares of attention, so that measures compare."""
        return math.inf if math.isnan(self.change) else abs(self.change) / self.limit.scale

    @property
    def beyond_rounding(self) -> bool:
        """Whether it has moved further than the rounding of its dtype."""
        return not abs(self.change) <= self.limit.floor


@dataclass(frozen=True)
class HeadChange:
    """One head that moved beyond rounding.

    Attributes:
        name: ``"L5H1"``.
        moves: Measures that moved beyond rounding, the worst first by `MeasureMove.ratio`.
        label_before: What the head did.
        label_after: What it does now.
    """

    name: str
    moves: tuple[MeasureMove, ...]
    label_before: str
    label_after: str

    @property
    def ratio(self) -> float:
        """The worst move by what is allowed."""
        return max((move.ratio for move in self.moves), default=0.0)

    @property
    def size(self) -> float:
        """The largest move in shares of attention."""
        return max((move.size for move in self.moves), default=0.0)

    @property
    def changed(self) -> bool:
        """Whether some measure moved further than allowed."""
        return self.ratio > 1

    @property
    def relabelled(self) -> bool:
        """Whether the head is called something else now."""
        return self.label_before != self.label_after


@dataclass(frozen=True)
class Drift:
    """How far the heads of a model moved without having changed.

    Attributes:
        heads: How many moved beyond rounding.
        total: How many were judged and had not changed.
        worst: Name of the one that moved furthest; empty if none moved.
        size: How far, as a share of its attention.
        median: Of the sizes of all heads that had not changed.
        by_layer: Largest size by layer.
        relabelled: Heads with another label, ``"L5H8 first_token -> mixed"``.
    """

    heads: int
    total: int
    worst: str
    size: float
    median: float
    by_layer: dict[str, float]
    relabelled: tuple[str, ...]

    def __str__(self) -> str:
        text = (
            f"{self.heads} of {self.total} heads drifted by up to {self.size:.2g} of their "
            f"attention ({self.worst}; median {self.median:.2g})"
        )
        return text + "".join(f"; {one}" for one in self.relabelled[:3])


@dataclass(frozen=True)
class Judgement:
    """What became of every head of a baseline.

    Attributes:
        total: Heads of the baseline.
        changed: Those that changed, worst first.
        drifted: Those that moved beyond rounding but not beyond what is allowed, worst first.
        missing: Heads of the baseline that are not there now.
        extra: Heads that the baseline does not know.
        permuted: Groups of heads of one layer that exchanged places, each ``((old, new), ...)``:
            what ``old`` did, ``new`` does now.
        drift: Summary of the heads that did not change.

    Example:
        >>> import torch
        >>> from attncheck import profile_attention
        >>> from attncheck.regression import judge, records_of
        >>> before = records_of([profile_attention(torch.eye(16))])
        >>> after = records_of([profile_attention(torch.full((16, 16), 1 / 16))])
        >>> judge(before, after).verdict, judge(before, before).verdict
        ('changed', 'same')
    """

    total: int
    changed: tuple[HeadChange, ...]
    drifted: tuple[HeadChange, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    permuted: tuple[tuple[tuple[str, str], ...], ...]
    drift: Drift

    @property
    def verdict(self) -> Literal["same", "drifted", "changed"]:
        """The one word."""
        if self.changed or self.missing or self.extra:
            return "changed"
        return "drifted" if self.drifted else "same"
