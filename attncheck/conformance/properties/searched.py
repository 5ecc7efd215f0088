"""Agreement on inputs that Hypothesis draws: between and beyond the designed levels."""

from __future__ import annotations

from attncheck.conformance.examine import agrees
from attncheck.conformance.registry import register

register(
    "search",
    "design",
    reason="levels that nobody listed: any length, any head size, any combination",
    source="MacIver et al. 2019, Hypothesis: a new approach to property-based testing",
    tags=("search",),
    cases=lambda _plan: [],
)(agrees)
