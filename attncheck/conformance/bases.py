"""A few plain inputs on which the relations without an oracle are tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from attncheck.conformance.case import Case
from attncheck.conformance.design import Plan, covering

__all__ = ["bases", "designed"]

Cases = Callable[[Plan], Sequence[Case]]

ORDINARY: dict[str, tuple[Any, ...]] = {
    "batch": (2, 3),
    "heads": ((2, 1), (3, 1), (1, 2), (2, 3)),
    "n_query": (4, 7, 17, 65),
    "n_key": ("same", 5, 9, 33),
    "size": (8, 16, 17),
    "mask": ("none", "bool", "float"),
    "mask_shape": ("qk", "b11k", "bhqk"),
    "pattern": ("random", "padding"),
    "causal": (False, True),
}


def designed(quick: int, default: int, thorough: int, **levels: tuple[Any, ...]) -> Cases:
    """Return a function that covers the given levels, by default with nothing else varied.

    Args:
        quick: Cases at quick effort.
        default: Cases at default effort.
        thorough: Cases at thorough effort.
        levels: Axes and their levels; ``dtype`` joins unless given.
    """

    def cases(plan: Plan) -> Sequence[Case]:
        asked = {"dtype": plan.dtypes, **levels}
        # One number, or a level that the plan refuses, would leave an axis without levels.
        found = covering(plan.narrow(asked), plan.pick(quick, default, thorough), plan.seed)
        return [plan.fit(exclusive(case, number)) for number, case in enumerate(found)]

    return cases


def bases(quick: int, default: int, thorough: int, **levels: tuple[Any, ...]) -> Cases:
    """Return a function that gives ordinary cases: several batches, heads, lengths, masks."""
    return designed(quick, default, thorough, **{**ORDINARY, **levels})


def exclusive(case: Case, number: int) -> Case:
    """Keep a mask or ``is_causal``, in turn; the documentation forbids both."""
    if case.causal and case.mask != "none":
        only = {"causal": False} if number % 2 else {"mask": "none"}
        return replace(case, **only).legal()
    return case
