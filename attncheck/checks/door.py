"""From a finding to an exception: the last step of every ``assert_*``."""

from __future__ import annotations

import math

from attncheck.checks.finding import Finding
from attncheck.checks.render import render
from attncheck.errors import CheckFailure

__all__ = ["raise_if_failed", "require_tolerance"]


def raise_if_failed(finding: Finding) -> None:
    """Raise `CheckFailure` with the rendered text if the rule does not hold."""
    __tracebackhide__ = True
    if not finding.passed:
        raise CheckFailure(render(finding), finding)


def require_tolerance(value: float | None, name: str = "atol") -> None:
    """Reject a tolerance that is not a number at or above 0."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: got {type(value).__name__}; expected a number >= 0")
    if math.isnan(value) or value < 0:
        raise ValueError(f"{name}: got {value}; expected a number >= 0")
