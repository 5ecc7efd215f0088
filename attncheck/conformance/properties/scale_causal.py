"""A scale of zero or less together with causality: the mask must not be scaled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from attncheck.conformance.bases import designed
from attncheck.conformance.case import Case
from attncheck.conformance.design import Plan
from attncheck.conformance.examine import agrees
from attncheck.conformance.registry import register

LEVELS = {
    "n_query": (1, 2, 3, 33, 65),
    "n_key": ("same", 2, 7, 70),
    "heads": ((1, 1), (2, 1), (1, 2)),
    "size": (8, 16),
    "content": ("normal", "large", "huge"),
    "grad": (False, True),
}

for _id, _scale in (("scale-zero-causal", "zero"), ("scale-negative-causal", "negative")):

    def _cases(plan: Plan, scale: str = _scale) -> Sequence[Case]:
        found = designed(8, 32, 80, **LEVELS)(plan)
        return [replace(case, causal=True, scale=scale) for case in found]

    register(
        _id,
        "scale",
        reason="-inf times a scale of zero or less is NaN or +inf: hide keys after scaling",
        source="documented semantics; torch 2.13's CPU kernel fails it, see docs/conformance.md",
        cases=_cases,
    )(agrees)
