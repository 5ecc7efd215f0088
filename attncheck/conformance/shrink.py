"""From an input that fails to the smallest one that still does, one axis at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from attncheck.conformance.case import AXES, Case
from attncheck.conformance.subject import Violation

__all__ = ["shrink"]

NUMBERS = ("batch", "kv_heads", "ratio", "n_query", "n_key", "size", "value_size")
PLAIN = Case(n_query=1, n_key=1, size=1, value_size=1)


def shrink(
    case: Case,
    violation: Violation,
    attempt: Callable[[Case], Violation | None],
    *,
    tries: int = 240,
    seconds: float = 2.0,
) -> tuple[Case, Violation]:
    """Return a simpler case that is still violated, and its violation.

    Args:
        case: A case that is violated.
        violation: How.
        attempt: Examines a case; returns its violation, or None.
        tries: Most cases to try.
        seconds: Longest time to spend.
    """
    end = time.perf_counter() + seconds
    seen = {case}
    improved = True
    while improved:
        improved = False
        for candidate in simpler(case):
            if tries <= 0 or time.perf_counter() > end:
                return case, violation
            if candidate in seen:
                continue
            seen.add(candidate)
            tries -= 1
            found = attempt(candidate)
            if found is not None:
                case, violation, improved = candidate, found, True
                break
    return case, violation


def simpler(case: Case) -> Iterator[Case]:
    """Yield cases that are simpler in one respect, the boldest steps first."""
    yield from _plainer(case)
    yield from _smaller(case)
    if case.seed:
        yield replace(case, seed=0)


def _plainer(case: Case) -> Iterator[Case]:
    """Yield cases with one word or flag put back to its default."""
    for name in AXES:
        if name == "scale" and case.causal and case.scale in ("zero", "negative"):
            continue
        plain = getattr(PLAIN, name)
        if name not in NUMBERS and name != "seed" and getattr(case, name) != plain:
            yield replace(case, **{name: plain}).legal()
    if case.mask == "float":
        yield replace(case, mask="bool").legal()


def _smaller(case: Case) -> Iterator[Case]:
    """Yield cases with one or two smaller numbers."""
    if case.n_query != case.n_key:
        least = min(case.n_query, case.n_key)
        yield replace(case, n_query=least, n_key=least)
    else:  # as long as it goes equal, for properties that share tensors
        for less in _below(case.n_query):
            yield replace(case, n_query=less, n_key=less).legal()
    if case.size == case.value_size:
        for less in _below(case.size):
            yield replace(case, size=less, value_size=less)
    for name in NUMBERS:
        for less in _below(getattr(case, name)):
            changed: dict[str, Any] = {name: less}
            yield replace(case, **changed).legal()
    if case.n_query > 1 and case.n_key > 1:
        yield replace(case, n_query=case.n_query - 1, n_key=case.n_key - 1).legal()


def _below(number: int) -> list[int]:
    around = {block + more for block in (8, 16, 32, 64, 128) for more in (-1, 0, 1)}
    return sorted(n for n in {1, 2, 3, number // 2, number - 1, *around} if 0 < n < number)
