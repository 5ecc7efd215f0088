"""How far a measure may move: below the floor it is rounding, above the allowance a change.

All of it follows from total variation, the share of a head's attention that has moved. A mass can
move no further than that; entropy (in nats) and effective keys (relative) were measured to move up
to twice as far. Worst heads of MiniLM-L6 on ten sentences and of the shipped model:

=====================  ===============  =========  =======  ================
change                 total variation  a mass     entropy  keys, relative
=====================  ===============  =========  =======  ================
padding, float64       3e-7             2e-7       2e-7     2e-7
float16                5e-4             4e-4       0.0011   0.0010
bfloat16               0.0044           0.0040     0.0098   0.0092
weights + 1 % noise    0.0107           0.0068     0.0170   0.0200
most alike two heads   0.150            0.0206     0.0374   0.0593
dynamic int8           0.161            0.158      0.390    0.345
=====================  ===============  =========  =======  ================

The floor is the dtype's own total variation of `TOLERANCES`. The allowance, `ALLOWED`, lies between
three times what bfloat16 does and what exchanging the two most alike heads does, and above what
1 % noise does. ``benchmarks/regression_sensitivity.py`` measures the table again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from attncheck.metrics import METRICS
from attncheck.regression.record import MEASURES, SHARES, HeadRecord
from attncheck.tolerances import Tolerance

__all__ = ["ALLOWED", "DIVERGENCE", "VARIATION", "Atol", "Limit", "Spread", "limit_of", "unit_of"]

Atol = float | Mapping[str, float] | None
"""One tolerance for all measures, or some by name."""

ALLOWED: Final = 0.015
"""Share of its attention that a head may move without having changed."""

VARIATION: Final = "variation"
"""Mean total variation of stored and present weights."""

DIVERGENCE: Final = "divergence"
"""Mean Jensen-Shannon divergence of stored and present weights, in nats."""

DIFFERENT: Final = 0.01
"""Divergence, in nats, from which behaviour differs: two heads of one MiniLM layer lie 0.037 to
0.59 apart, dynamic int8 moves a head by 0.03, weights with 5 % noise by 0.004."""

FACTOR: Final = {"share": 1, "nats": 2, "keys": 2, "tokens": 2}
RELATIVE: Final = ("keys", "tokens")
"""Units in which a change counts in proportion, once the value is beyond 1."""

PRIOR: Final = 4.0
"""Degrees of freedom that the spread common to all heads weighs, against ``runs - 1`` of a head's
own (a moderated t-statistic; Smyth 2004, there estimated from the data)."""

ALARMS: Final = 0.01
"""Chance that any head of an unchanged model is reported."""


@dataclass(frozen=True)
class Limit:
    """What one measure may do.

    Attributes:
        floor: Up to here it is rounding.
        allowed: Up to here the head is the same.
        scale: What a change is divided by to compare it with shares of attention.
    """

    floor: float
    allowed: float
    scale: float


def unit_of(measure: str) -> str:
    """Return the unit of a measure: share, nats, keys or tokens."""
    if measure == DIVERGENCE:
        return "nats"
    return METRICS[measure].unit if measure in METRICS else "share"


def limit_of(
    measure: str, before: float, after: float, tolerance: Tolerance, atol: Atol = None
) -> Limit:
    """Say how far a measure may move.

    Args:
        measure: Its name.
        before: Value in the baseline.
        after: Value now.
        tolerance: Of the coarser dtype of the two.
        atol: What the caller allows instead; of keys and tokens, in proportion beyond 1.

    Example:
        >>> from attncheck.tolerances import tolerance_for
        >>> limit = limit_of("entropy", 2.0, 2.1, tolerance_for("float32"))
        >>> round(limit.floor, 6), limit.allowed
        (2.2e-05, 0.03)
    """
    unit = unit_of(measure)
    size = max(1.0, abs(before), abs(after)) if unit in RELATIVE else 1.0
    factor = 2 if measure == VARIATION else FACTOR[unit]
    # What is written with six digits is read back with that error.
    floor = factor * size * tolerance.total_variation + 1e-6 * max(abs(before), abs(after))
    allowed = max(factor * size * ALLOWED, floor)
    if measure == DIVERGENCE:
        allowed = max(DIFFERENT, floor)
    elif measure == "row_sum_error":
        allowed = floor = tolerance.row_sum
    elif measure == "future_mass" and before == 0:
        allowed = floor  # a causal head that looks ahead is broken, however little it sees
    given = atol.get(measure) if isinstance(atol, Mapping) else atol
    if given is not None:
        allowed = given * size
        floor = min(floor, allowed)
    return Limit(floor, allowed, 1.0 if measure == VARIATION else factor * size)


def require_atol(atol: Any) -> None:
    """Raise unless ``atol`` is a number at or above 0, or such numbers by measure."""
    named = atol if isinstance(atol, Mapping) else {"": atol}
    known = (*MEASURES, *SHARES, VARIATION, DIVERGENCE)
    for measure, value in named.items():
        if value is None and not measure:
            continue
        if measure and measure not in known:
            raise ValueError(f"atol: no measure {measure!r}; the measures are {', '.join(known)}")
        where = f"atol[{measure!r}]" if measure else "atol"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{where}: got {type(value).__name__}; expected a number >= 0")
        if math.isnan(value) or value < 0:
            raise ValueError(f"{where}: got {value}; expected a number >= 0")


class Spread:
    """What chance does to means over runs, from the spread that a baseline recorded.

    The allowance of a measure is the two-sided quantile of Student's t for `ALARMS` divided by the
    number of comparisons, times the standard error of the difference of two means. A head's own
    variance is drawn towards the mean variance of that measure over all heads, because a few runs
    can agree by luck.

    Args:
        heads: Records of the baseline.
        before: Runs of the baseline.
        after: Runs now.
    """

    def __init__(self, heads: Sequence[HeadRecord], before: int, after: int) -> None:
        from scipy.special import stdtrit

        self.common: dict[str, float] = {}
        for name in {measure for head in heads for measure in head.spread}:
            drawn = [head.spread[name] for head in heads if name in head.spread]
            self.common[name] = float(np.mean(np.square(drawn)))
        tests = sum(len(head.spread) for head in heads)
        self.own = before - 1
        self.error = math.sqrt(1 / before + 1 / after)
        self.quantile = float(stdtrit(PRIOR + self.own, 1 - ALARMS / (2 * max(1, tests))))

    def allowed(self, head: HeadRecord, measure: str) -> float | None:
        """Return how far a measure may move; None if no spread was recorded for it."""
        if measure not in head.spread:
            return None
        own, prior = head.spread[measure] ** 2, self.common[measure]
        variance = (PRIOR * prior + self.own * own) / (PRIOR + self.own)
        return self.quantile * self.error * math.sqrt(variance)
