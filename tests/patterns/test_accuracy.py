"""The detector on generators it was not tuned on: a slower guard on macro accuracy."""

from __future__ import annotations

import pytest

pytest.importorskip("benchmarks.detector_accuracy", reason="needs the source tree")

from benchmarks.detector_accuracy import (
    classic_cases,
    evaluate,
    judge_cases,
    own_cases,
    rejected_share,
)


@pytest.mark.slow
def test_own_family() -> None:
    result = evaluate(own_cases(1, seed=31, lengths=(8, 12, 16, 32, 64, 128)))
    assert result["macro"] >= 0.97
    assert result["baseline_macro"] < 0.5


@pytest.mark.slow
def test_judging_family() -> None:
    result = evaluate(judge_cases(1, seed=32, lengths=(8, 12, 16, 32, 64, 128)))
    assert result["macro"] >= 0.95
    assert min(result["per_pattern"].values()) >= 0.8
    assert result["cells"]["n 64"] >= 0.98


@pytest.mark.slow
def test_classic_family() -> None:
    assert evaluate(classic_cases(1, lengths=(8, 16, 32, 64, 128, 256)))["macro"] >= 0.99
    assert rejected_share(1) == 1
