"""`HeadSample`: what a monitor saw of every head at one training step, as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from attncheck.metrics import METRICS

__all__ = ["EXTRA", "MASSES", "HeadAlert", "HeadSample", "units"]

EXTRA: Final[Mapping[str, str]] = MappingProxyType(
    {
        "max_logit": "largest visible score before softmax, after scaling",
        "output_rms": "root mean square of what the head passes on, before the output projection",
        "twin_distance": "distance to the most similar head of its layer, in proportion to how "
        "far both are from even attention: 0 is the same head twice, unrelated heads are near 1.4",
        "bad_rows": "share of rows that hold NaN or infinity, in weights or output",
        "label_mass": "mass on the pattern that the label names",
    }
)
"""Measures of a sample beside `METRICS` and `MASSES`."""

MASSES: Final = (
    "diagonal",
    "previous_token",
    "next_token",
    "first_token",
    "duplicate_token",
    "induction",
    "delimiter",
)
"""Patterns whose mass is kept, where they can be scored: those that are looked up."""


def units(measure: str) -> str:
    """Return the unit of a measure of a sample, for axes and tables.

    Example:
        >>> units("entropy"), units("max_logit"), units("induction")
        ('nats', '', 'share')
    """
    if measure in METRICS:
        return METRICS[measure].unit
    return "" if measure in ("max_logit", "output_rms", "twin_distance") else "share"


@dataclass(frozen=True)
class HeadAlert:
    """One thing that went wrong in one head.

    Attributes:
        kind: ``"entropy_collapse"``, ``"max_logit"``, ``"sink_growth"``, ``"dead"``,
            ``"duplicate"`` or ``"not_finite"``.
        head: Name of the head, ``"L5H1"``.
        step: Training step of the sample.
        value: What was measured.
        limit: What it was held against.
        text: The rest of the message.

    Example:
        >>> print(HeadAlert("max_logit", "L1H0", 150, 412.0, 100.0, "scores reach 412, over 100"))
        step 150, L1H0: max logit: scores reach 412, over 100
    """

    kind: str
    head: str
    step: int
    value: float
    limit: float
    text: str

    def __str__(self) -> str:
        return f"step {self.step}, {self.head}: {self.kind.replace('_', ' ')}: {self.text}"


@dataclass(frozen=True)
class HeadSample:
    """Every head at one training step.

    Attributes:
        step: Training step.
        time: Seconds since the epoch.
        heads: Names of the heads, layer by layer.
        measures: Values by measure, one per head; NaN where there is none.
        labels: What each head does.
        twins: Name of the most similar head of the same layer; empty where it is alone.
        alerts: What was found wrong.
    """

    step: int
    time: float
    heads: tuple[str, ...]
    measures: Mapping[str, tuple[float, ...]]
    labels: tuple[str, ...]
    twins: tuple[str, ...]
    alerts: tuple[HeadAlert, ...] = field(default=())

    def value(self, measure: str, head: int) -> float:
        """Return one number, NaN where it was not measured."""
        held = self.measures.get(measure)
        return math.nan if held is None else held[head]

    def to_dict(self) -> dict[str, Any]:
        """Return the sample ready for JSON: five digits, None for what is no finite number."""
        return {
            "step": self.step,
            "time": round(self.time, 3),
            "heads": list(self.heads),
            "labels": list(self.labels),
            "twins": list(self.twins),
            "measures": {name: [*map(_short, held)] for name, held in self.measures.items()},
            "alerts": [
                {**vars(alert), "value": _short(alert.value), "limit": _short(alert.limit)}
                for alert in self.alerts
            ],
        }

    @classmethod
    def from_dict(cls, held: Mapping[str, Any]) -> HeadSample:
        """Read what `to_dict` returned.

        Raises:
            ValueError: A field is missing, of the wrong type or of the wrong length.
        """
        try:
            heads = tuple(map(str, held["heads"]))
            sample = cls(
                step=int(held["step"]),
                time=float(held["time"]),
                heads=heads,
                measures={
                    str(name): tuple(map(_long, row)) for name, row in held["measures"].items()
                },
                labels=tuple(map(str, held["labels"])),
                twins=tuple(map(str, held["twins"])),
                alerts=tuple(
                    HeadAlert(
                        kind=str(one["kind"]),
                        head=str(one["head"]),
                        step=int(one["step"]),
                        value=_long(one["value"]),
                        limit=_long(one["limit"]),
                        text=str(one["text"]),
                    )
                    for one in held["alerts"]
                ),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"damaged sample ({error!r})") from None
        rows = (sample.labels, sample.twins, *sample.measures.values())
        if not heads or any(len(row) != len(heads) for row in rows):
            raise ValueError(f"damaged sample: rows of other lengths than its {len(heads)} heads")
        return sample


def _short(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _long(value: float | None) -> float:
    return math.nan if value is None else float(value)
