"""Many correct implementations through the battery at once: each input is judged by one oracle.

What an input must give is the same for all of them, and takes longer to compute than any of them
does. So a property goes through its inputs once, and each input through all implementations. What
one of them refuses counts as refused, as in `attncheck.check_attention`; a float64 that is float32
inside is left to `check_attention`, which knows.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from torch import Tensor

import attncheck.conformance
from attncheck.conformance.case import Case, Inputs
from attncheck.conformance.design import Plan
from attncheck.conformance.numerics import Expected, Reference
from attncheck.conformance.probe import probe
from attncheck.conformance.registry import Property
from attncheck.conformance.run import attempt, settings
from attncheck.conformance.search import cases as drawn_cases
from attncheck.conformance.search import find
from attncheck.conformance.subject import Subject, Violation
from tests.conformance.implementations import Implementation

__all__ = ["probed", "run_jointly", "unit_key"]

CORE: Final = (
    "capabilities.py", "case.py", "examine.py", "kinds.py", "oracle.py", "probe.py", "run.py",
    "search.py", "subject.py",
)  # fmt: skip
"""What a verdict depends on, besides a property's inputs and how it examines them."""

TIGHTENED: Final = 1
"""To be raised when an allowance becomes smaller: while they only grow, who passed passes."""


class _Shared(Reference):
    """Arithmetic that is asked for the same things again and again."""

    def values(self, with_weights: bool = True) -> dict[str, Expected]:
        if not hasattr(self, "_values"):
            self._values = super().values(False)
        if with_weights and "weights" not in self._values:
            self._values = super().values()
        return self._values

    def gradients(self, direction: Tensor) -> dict[str, Expected]:
        if not hasattr(self, "_gradients"):  # the direction follows from the shape
            self._gradients = super().gradients(direction)
        return self._gradients


def probed(
    implementations: Mapping[str, Implementation], effort: str, seed: int
) -> tuple[dict[str, Subject], Plan]:
    """Probe all; return them with the plan of what any of them supports."""
    subjects: dict[str, Subject] = {}
    refused: list[frozenset[str]] = []
    for name, entry in implementations.items():
        subject = Subject(entry.function, entry.returns_weights, entry.capabilities)
        with settings(1):
            plan, failure = probe(subject, Plan(effort, seed))
        assert failure is None, failure
        subject.refused, subject.dtypes = plan.refused, plan.dtypes
        subjects[name] = subject
        refused.append(plan.refused)
    everything = Plan(effort, seed)
    common = frozenset.intersection(*refused) if refused else frozenset()
    return subjects, replace(everything, refused=common, accepted=everything.dtypes)


def run_jointly(
    entry: Property, plan: Plan, subjects: Mapping[str, Subject]
) -> dict[str, dict[str, Any]]:
    """Run one property on all; for each the inputs it took, and the first failure in words."""
    if "weights" in entry.tags:
        subjects = {name: s for name, s in subjects.items() if s.returns_weights}
    rows: dict[str, dict[str, Any]] = {n: {"inputs": 0, "failure": ""} for n in subjects}
    store: dict[Case, Reference] = {}

    def shared(case: Case, _inputs: Inputs) -> Reference:
        if case not in store:
            store.clear()
            store[case] = _Shared(case.build(), grad=case.grad)  # its own: inputs may be changed
        return store[case]

    def examine(case: Case) -> Violation | None:
        first = None
        for name, subject in subjects.items():
            if rows[name]["failure"]:
                continue
            violation, refusal = attempt(entry, subject, case)
            rows[name]["inputs"] += not refusal
            if violation is not None:
                rows[name]["failure"] = f"{violation.message}; {case.describe()}; {case.to_dict()}"
                first = violation
        return first

    with settings(None if "threads" in entry.tags else 1):
        for subject in subjects.values():
            subject.references = shared
        try:
            if "search" in entry.tags:
                examples = plan.pick(40, 300, 2000)
                find(drawn_cases(plan), examine, examples=examples, seed=plan.seed)
            else:
                for case in entry.cases(plan):
                    examine(case)
        finally:
            for subject in subjects.values():
                subject.references = None
    return rows


@lru_cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unit_key(entry: Property, plan: Plan, implementations: Mapping[str, Implementation]) -> str:
    """Return a name for a unit of work that changes with all that may change its verdicts."""
    folder = Path(attncheck.conformance.__file__).parent
    parts = [_digest(folder / name) for name in CORE]
    parts += [str(TIGHTENED), repr(sorted(plan.refused)), repr(list(entry.cases(plan)))]
    parts.append(inspect.getsource(entry.examine).split("\ndef ", 1)[-1])
    for name, implementation in implementations.items():
        try:
            parts.append(f"{name} {_digest(Path(inspect.getfile(implementation.function)))}")
        except TypeError:
            parts.append(name)  # a builtin, of torch's version
    short = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    return f"joint-{plan.effort}-{plan.seed}-{entry.id}-{short}"
