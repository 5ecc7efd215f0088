"""Checks of one kind: a measure of each head, the mean over its rows, lies within bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attncheck.attention import LayerAttention
from attncheck.checks.door import is_number
from attncheck.checks.finding import Evidence, Finding, Offender
from attncheck.checks.subject import Subject, head_label
from attncheck.metrics import METRICS

__all__ = ["Bounds", "judge_bounds", "require_bounds"]


@dataclass(frozen=True)
class Bounds:
    """The bounds of a measure; None is no bound."""

    low: float | None
    high: float | None

    def excess(self, value: Tensor) -> Tensor:
        """How far values lie outside; 0 inside, NaN for NaN."""
        below = torch.zeros_like(value) if self.low is None else self.low - value
        above = torch.zeros_like(value) if self.high is None else value - self.high
        return below.maximum(above).clamp(min=0)

    def __str__(self) -> str:
        low = "" if self.low is None else f"{self.low:g} <= "
        high = "" if self.high is None else f" <= {self.high:g}"
        return f"{low}{{}}{high}"


def require_bounds(
    low: float | None, high: float | None, *, least: float = 0.0, most: float | None = None
) -> Bounds:
    """Check bounds.

    Args:
        low: ``min=`` of the assertion.
        high: ``max=`` of the assertion.
        least: Smallest value that the measure can have.
        most: Largest value that the measure can have, None if it depends on the length.

    Raises:
        TypeError: A bound is no number.
        ValueError: There is none, ``min > max``, or a bound that no value can break or meet.
    """
    for argument, bound in (("min", low), ("max", high)):
        if bound is None:
            continue
        if not is_number(bound):
            raise TypeError(f"{argument}: got {type(bound).__name__}; expected a number")
        if math.isnan(bound) or bound < least or (most is not None and bound > most):
            upper = "" if most is None else f" to {most:g}"
            raise ValueError(f"{argument}: got {bound}; this measure goes from {least:g}{upper}")
    if low is None and high is None:
        raise ValueError("min, max: neither is given; nothing to judge")
    if low is not None and high is not None and low > high:
        raise ValueError(f"min={low} is above max={high}; no value lies between")
    return Bounds(low, high)


def judge_bounds(
    subject: Subject,
    bounds: Bounds,
    *,
    check: str,
    metric: str,
    label: str,
    hint: str,
    atol: float = 0.0,
) -> Finding:
    """Find heads whose mean over rows lies outside the bounds.

    Args:
        subject: The attention.
        bounds: The bounds.
        check: Name of the check.
        metric: Name of the measure in `METRICS`.
        label: What the message calls it.
        hint: What to do when it fails.
        atol: How far outside a mean may lie, for rounding.

    Raises:
        ValueError: A head has no row to judge.
    """
    found: list[tuple[float, Offender, LayerAttention, int, tuple[int, int]]] = []
    for layer in subject.layers:
        values, valid = METRICS[metric].rows(layer)
        counts = valid.sum((0, 2))
        if (counts == 0).any():
            empty = head_label(layer, int((counts == 0).nonzero()[0]))
            raise ValueError(
                f"{subject.name}: no row of {empty} has {label}: all are masked, or see one key"
            )
        means = values.double().masked_fill(~valid, 0).sum((0, 2)) / counts
        outside = bounds.excess(means)
        for head in (~(outside <= atol)).nonzero().flatten().tolist():
            rows = bounds.excess(values[:, head].double()).nan_to_num(torch.inf)
            rows = rows.masked_fill(~valid[:, head], -1)
            batch, query = divmod(int(rows.argmax()), layer.n_query)
            offender = Offender(
                head=head_label(layer, head),
                values=(float(means[head]), float(outside[head])),
                worst=float(values[batch, head, query]),
                at=subject.position(layer, batch, query),
            )
            found.append((float(outside[head]), offender, layer, head, (batch, query)))
    found.sort(key=lambda one: -math.inf if math.isnan(one[0]) else -one[0])
    return Finding(
        check=check,
        passed=not found,
        verdict=_verdict(label, bounds, len(found), subject.n_heads),
        name=subject.name,
        subject=subject.description,
        rule=str(bounds).format(f"mean over rows of {label}"),
        columns=(label, "outside", "worst row"),
        offenders=tuple(offender for _, offender, *_ in found),
        n_passed=subject.n_heads - len(found),
        n_total=subject.n_heads,
        hints=(hint,) if found else (),
        evidence=_evidence(subject, *found[0][2:]) if found else None,
    )


def _evidence(
    subject: Subject, layer: LayerAttention, head: int, worst: tuple[int, int]
) -> Evidence:
    batch, query = worst
    return subject.evidence(layer, head, batch, around=(query, 0))


def _verdict(label: str, bounds: Bounds, n_outside: int, n_heads: int) -> str:
    asked = str(bounds).format(label)
    return f"{label} outside bounds: {n_outside} of {n_heads} heads" if n_outside else asked
