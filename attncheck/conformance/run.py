"""Run one property: over its cases up to the first that fails, then shrink, then explain."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from attncheck.conformance.case import Case
from attncheck.conformance.design import Plan
from attncheck.conformance.diagnose import likely_mistake
from attncheck.conformance.examine import agrees
from attncheck.conformance.registry import Property
from attncheck.conformance.report import Failure, Outcome
from attncheck.conformance.reproduce import script_for
from attncheck.conformance.search import cases as drawn_cases
from attncheck.conformance.search import find
from attncheck.conformance.shrink import shrink
from attncheck.conformance.subject import Refused, Subject, Violation

__all__ = ["attempt", "run_property"]


def run_property(entry: Property, subject: Subject, plan: Plan) -> Outcome:
    """Run one property over its cases, up to the first that fails, and shrink that."""
    with settings(None if "threads" in entry.tags else 1):
        return _run(entry, subject, plan)


@contextmanager
def settings(count: int | None) -> Iterator[None]:
    """Compute with some threads: small inputs on many threads cost more time, not less.

    Threads and random state are left as they were.
    """
    before, state = torch.get_num_threads(), torch.get_rng_state()
    if count is not None and count != before:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
        torch.set_rng_state(state)


def _run(entry: Property, subject: Subject, plan: Plan) -> Outcome:
    start = time.perf_counter()
    if "search" in entry.tags:
        return _searched(entry, subject, plan, start)
    tried = refused = 0
    passed: list[Case] = []
    cases = list(entry.cases(plan))
    for case in cases:
        tried += 1
        violation, refusal = _judged(entry, subject, case)
        if refusal:
            refused += 1
            subject.refusals[refusal] += 1
        elif violation is None and case.work < 1e6:
            passed.append(case)
        if violation is not None:
            around = cases[tried : tried + 12], passed[-6:]
            failure = explain(entry, subject, case, violation, *around)
            break
    else:
        failure = None
    status = "failed" if failure else "not supported" if refused == tried else "passed"
    spent = time.perf_counter() - start
    return Outcome(entry.id, entry.family, status, tried, refused, round(spent, 3), failure)


def _searched(entry: Property, subject: Subject, plan: Plan, start: float) -> Outcome:
    """Let Hypothesis draw and shrink the cases of a property."""
    tried: list[str] = []

    def examine(case: Case) -> Violation | None:
        violation, refusal = _judged(entry, subject, case)
        tried.append(refusal)
        return violation

    examples = plan.pick(40, 300, 2000)
    found = find(drawn_cases(plan), examine, examples=examples, seed=plan.seed)
    failure = explain(entry, subject, *found) if found else None
    refused = sum(bool(refusal) for refusal in tried)
    spent = round(time.perf_counter() - start, 3)
    status = "failed" if failure else "passed"
    return Outcome(entry.id, entry.family, status, len(tried), refused, spent, failure)


def attempt(entry: Property, subject: Subject, case: Case) -> tuple[Violation | None, str]:
    """Examine one case: its violation, or the words in which it was refused, or neither."""
    excluded = subject.capabilities.allows(case)
    if excluded:
        return None, f"declared {excluded}"
    try:
        entry.examine(subject, case)
    except Refused as refusal:
        promised = subject.capabilities.promises(case, dropout=entry.family == "dropout")
        if promised:
            return Violation(f"refuses ({refusal}) what {promised} declares as supported"), ""
        return None, str(refusal)
    except Violation as violation:
        return violation, ""
    return None, ""


def _judged(entry: Property, subject: Subject, case: Case) -> tuple[Violation | None, str]:
    """Examine one case; what is returned in such a form that it can't be examined is a failure."""
    try:
        return attempt(entry, subject, case)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        said = str(e).strip().splitlines() or [""]
        found = f"{type(e).__name__}: {said[0][:160]}"
        return Violation(f"what it returned could not be judged ({found})"), ""


def explain(
    entry: Property,
    subject: Subject,
    case: Case,
    violation: Violation,
    others: Iterable[Case] = (),
    passed: Iterable[Case] = (),
) -> Failure:
    """Shrink a failing case and say what is known about it.

    Other cases help to tell why: those that fail too, and those that passed.
    """
    again, _ = _judged(entry, subject, case)
    repeats = again is not None
    evidence, passed = [violation], list(passed)
    for other in others if repeats else ():
        found, refusal = _judged(entry, subject, other)
        if found is not None:
            evidence.append(found)
        elif not refusal and other.work < 1e6:
            passed.append(other)
    if again is not None:
        case, violation = shrink(case, again, lambda other: _simpler_fails(entry, subject, other))
    alone = _wrong_alone(entry, subject, case) if repeats else None
    message, shown = violation.message, alone or violation
    if alone is not None:
        message = f"{message}; but one call alone is wrong too: {alone.message}"
        evidence.append(alone)
    return Failure(
        id=entry.id,
        reason=entry.reason,
        violated=message,
        severity=violation.severity,
        input=case.describe(),
        evidence=shown.evidence,
        mechanism=likely_mistake(
            [*evidence, violation],
            subject.rules,
            [subject.build(other) for other in passed] if entry.examine is agrees else [],
        )
        if repeats
        else "",
        script=script_for(entry, case, shown, subject, own=alone is None),
        case=case.to_dict(),
        repeats=repeats,
    )


def _wrong_alone(entry: Property, subject: Subject, case: Case) -> Violation | None:
    """Compare one call with the oracle, where a property compares several calls: it may be that.

    Not for calls that leave something behind: what came before would show in the one.
    """
    if entry.examine is agrees or (entry.family == "state" and entry.id != "state-threads"):
        return None
    try:
        agrees(subject, case)
    except Refused:
        return None
    except Violation as violation:
        return violation
    return None


def _simpler_fails(entry: Property, subject: Subject, case: Case) -> Violation | None:
    """Examine a simpler case; one too small for the property to examine shows nothing."""
    try:
        return attempt(entry, subject, case)[0]
    except (ArithmeticError, LookupError, RuntimeError, ValueError):
        return None
