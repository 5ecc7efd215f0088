"""The search: Hypothesis draws inputs between and beyond the designed ones, and shrinks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from attncheck.conformance.case import Case
from attncheck.conformance.design import MASK_SHAPES, RARE_PATTERNS, Plan, lighten
from attncheck.conformance.kinds import (
    BOOL_PATTERNS,
    FLOAT_PATTERNS,
    LAYOUTS,
    MASK_LAYOUTS,
    SCALES,
    USUAL_CONTENTS,
)
from attncheck.conformance.subject import Violation

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = ["cases", "find"]


def cases(plan: Plan, max_length: int = 140, max_size: int = 140) -> SearchStrategy[Case]:
    """Return a Hypothesis strategy of legal cases.

    Levels are ordered from plain to odd, so that Hypothesis shrinks toward the plain.

    Args:
        plan: What is supported.
        max_length: Most queries and keys.
        max_size: Largest head size.
    """
    from hypothesis import strategies as st

    levels: dict[str, tuple[Any, ...]] = plan.narrow(
        {
            "rank": (4, 3, 2, 5),
            "dtype": plan.dtypes,
            "mask": ("none", "bool", "float"),
            "causal": (False, True),
            "scale": tuple(SCALES),
            "layout": tuple(LAYOUTS),
            "grad": (False, True),
        }
    )
    drawn: dict[str, SearchStrategy[Any]] = {
        name: st.sampled_from(values) for name, values in levels.items()
    }
    patterns = tuple(dict.fromkeys([*BOOL_PATTERNS, *FLOAT_PATTERNS]))
    drawn |= {
        "batch": st.integers(1, 6),
        "kv_heads": st.integers(1, 5),
        "ratio": st.just(1) if "gqa" in plan.refused else st.integers(1, 8),
        "n_query": st.integers(1, max_length),
        "n_key": st.integers(1, max_length),
        "size": st.integers(1, max_size),
        "value_size": st.integers(1, max_size),
        "mask_shape": st.sampled_from(MASK_SHAPES),
        "pattern": st.sampled_from(tuple(p for p in patterns if p not in RARE_PATTERNS)),
        "mask_layout": st.sampled_from(tuple(MASK_LAYOUTS)),
        "layout_on": st.sampled_from(("qkv", "q", "k", "v", "kv")),
        "content": st.sampled_from(USUAL_CONTENTS),
    }
    return st.builds(Case, **drawn).map(lambda case: _ordinary(case, plan))


def _ordinary(case: Case, plan: Plan) -> Case:
    """Leave out what has a property of its own, and what is not supported."""
    if case.causal and case.scale in ("zero", "negative"):
        case = replace(case, scale="given")
    return plan.fit(lighten(case, 6_000_000).legal())


def find(
    strategy: SearchStrategy[Case],
    attempt: Callable[[Case], Violation | None],
    *,
    examples: int,
    seed: int,
) -> tuple[Case, Violation] | None:
    """Search for a case that is violated; return the smallest that Hypothesis shrinks it to.

    Args:
        strategy: Draws cases.
        attempt: Examines a case; returns its violation, or None.
        examples: Most cases to try before one fails.
        seed: The same seed draws the same cases.
    """
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    failed: dict[Case, Violation] = {}
    last: list[Case] = []

    @seeded(seed)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(strategy)
    def run(case: Case) -> None:
        violation = attempt(case)
        if violation is not None:
            failed[case] = violation
            last[:] = [case]
            raise AssertionError

    try:
        run()
    except BaseException as error:  # Hypothesis may wrap it: unreproducible cases are Flaky
        if not failed or isinstance(error, KeyboardInterrupt):
            raise
    return (last[0], failed[last[0]]) if failed else None
