"""Bugs planted in real small models: each is caught by the promise that it breaks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from attncheck import check_model

transformers = pytest.importorskip("transformers")

from benchmarks._promises_mutants import MUTANTS  # noqa: E402
from benchmarks._promises_planting import Mutant, sound  # noqa: E402


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(before)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_caught(mutant: Mutant) -> None:
    model = sound(mutant.family)
    mutant.plant(model)
    report = check_model(model, select=[mutant.promise], raises=False)
    assert [outcome.status for outcome in report.outcomes] == ["failed"], report


def test_there_are_many_and_of_every_kind() -> None:
    assert len(MUTANTS) >= 25
    assert len({mutant.promise for mutant in MUTANTS}) >= 11
