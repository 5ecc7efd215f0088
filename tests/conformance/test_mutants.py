"""Every planted mistake is found; the full sweep with times is in the benchmark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from attncheck.conformance import check_attention
from attncheck.conformance.battery import select_properties
from attncheck.conformance.design import Plan
from attncheck.conformance.extensions import EXTENSIONS
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
def test_right_extensions_pass(name: str) -> None:
    report = check_attention(RIGHT[name], extension=name, effort="quick", raises=False)
    assert report.passed, str(report)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [pytest.param(name, wrong, id=wrong.__name__) for name in WRONG for wrong in WRONG[name]],
)
def test_wrong_extensions_die(name: str, wrong: Callable[..., Any]) -> None:
    """One property after another, until one fails; the benchmark runs all of them on each."""
    extension = EXTENSIONS[name]
    entries = [*extension.select, *(entry.id for entry in extension.properties)]
    for entry in entries:
        report = check_attention(
            wrong, extension=name, effort="quick", select=[entry], raises=False
        )
        if not report.passed:
            assert all("/" in failure.id for failure in report.failures)
            return
    pytest.fail(f"{wrong.__name__} passes")


def test_properties_of_an_extension_are_selected() -> None:
    report = check_attention(
        RIGHT["softcap"], extension="softcap", effort="quick", select=["scale-default"]
    )
    assert {outcome.id.partition("/")[2] for outcome in report.outcomes} == {"scale-default"}
    with pytest.raises(ValueError, match=r"select: .*'?dropout-rate.* of softcap: scale-default"):
        check_attention(RIGHT["softcap"], extension="softcap", select=["dropout-rate"])
    with pytest.raises(ValueError, match="returns_weights: extension 'softcap'"):
        check_attention(RIGHT["softcap"], extension="softcap", returns_weights=True)
