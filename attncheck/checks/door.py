"""From a finding to an exception: the last step of every ``assert_*``."""

from __future__ import annotations

import math
from numbers import Real

from attncheck.checks.finding import Finding
from attncheck.checks.render import render
from attncheck.errors import CheckFailure

__all__ = ["is_number", "raise_if_failed", "require_tolerance"]


def raise_if_failed(finding: Finding) -> None:
    """Raise `CheckFailure` with the rendered text if the rule does not hold."""
    __tracebackhide__ = True
    if not finding.passed:
        raise CheckFailure(render(finding), finding)


def require_tolerance(value: float | None, name: str = "atol") -> None:
    """Reject a tolerance that is not a finite number at or above 0."""
    if value is None:
        return
    if not is_number(value):
        raise TypeError(f"{name}: got {type(value).__name__}; expected a number >= 0")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}: got {value}; expected a finite number >= 0")


def is_number(value: object) -> bool:
    """Whether this is a real number of any library, but not a bool."""
    return isinstance(value, Real) and not isinstance(value, bool)
