"""Every planted mistake is found; the full sweep with times is in the benchmark."""

from __future__ import annotations

from collections import Counter

import pytest

from attncheck.conformance import check_attention
from attncheck.conformance.battery import select_properties
from attncheck.conformance.design import Plan
from attncheck.conformance.probe import probe
from attncheck.conformance.run import attempt
from attncheck.conformance.subject import Subject
from tests.conformance.extended import RIGHT, WRONG
from tests.conformance.mutants import MUTANTS
from tests.conformance.mutants.base import Steps


def killed(name: str, effort: str) -> str:
    mutant = MUTANTS[name]
    subject = Subject(mutant.make(), mutant.returns_weights)
    plan, failure = probe(subject, Plan(effort))
    if failure is not None:
        return failure.id
    subject.refused, subject.dtypes = plan.refused, plan.dtypes
    for entry in select_properties(None, mutant.returns_weights):
        for case in entry.cases(plan):
            if attempt(entry, subject, case)[0] is not None:
                return entry.id
    return ""


def test_there_are_mutants_of_every_family() -> None:
    families = Counter(mutant.family for mutant in MUTANTS.values())
    assert sum(families.values()) >= 60
    assert set(families) >= {
        "scale", "mask", "causal", "gqa", "softmax", "dtype", "layout", "shape", "state",
        "gradient", "dropout", "weights", "rare",
    }  # fmt: skip
    assert all(mutant.source for mutant in MUTANTS.values())


@pytest.mark.slow
def test_the_steps_of_the_mutants_are_right_before_they_are_changed() -> None:
    report = check_attention(Steps(), effort="quick", raises=False)
    assert report.passed, str(report)


# The mutants whose death takes longest are left to the benchmark, which tries all of them.
LONG = {"shape-batch-65535", "rare-long-queries-causal", "rare-many-heads"}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(MUTANTS) - LONG)[::3])
def test_mutants_die(name: str) -> None:
    assert killed(name, "quick") or killed(name, "default"), name


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.slow
def test_extensions(name: str) -> None:
    report = check_attention(RIGHT[name], extension=name, effort="quick", raises=False)
    assert report.passed, str(report)
    for wrong in WRONG[name][::2]:  # the benchmark tries all of them
        report = check_attention(wrong, extension=name, effort="quick", raises=False)
        assert not report.passed, wrong.__name__
        assert all("/" in failure.id for failure in report.failures)
