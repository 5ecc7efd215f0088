"""Does the whole model keep attention's promises? Black-box assertions on any model."""

from __future__ import annotations

from attncheck.model_checks.battery import check_model
from attncheck.model_checks.promises import (
    assert_backends_agree,
    assert_batch_invariant,
    assert_cache_consistent,
    assert_deterministic,
    assert_dropout_off_in_eval,
    assert_gradients_flow,
    assert_no_future_leakage,
    assert_padding_invariant,
    assert_permutation_equivariant,
    assert_position_sensitive,
    assert_segments_isolated,
    assert_window_respected,
)
from attncheck.model_checks.pytest_door import parametrize_with_model_checks
from attncheck.model_checks.registry import PROMISES, Promise
from attncheck.model_checks.report import ModelReport, Outcome
from attncheck.model_checks.subject import ModelSubject

__all__ = [
    "PROMISES",
    "ModelReport",
    "ModelSubject",
    "Outcome",
    "Promise",
    "assert_backends_agree",
    "assert_batch_invariant",
    "assert_cache_consistent",
    "assert_deterministic",
    "assert_dropout_off_in_eval",
    "assert_gradients_flow",
    "assert_no_future_leakage",
    "assert_padding_invariant",
    "assert_permutation_equivariant",
    "assert_position_sensitive",
    "assert_segments_isolated",
    "assert_window_respected",
    "check_model",
    "parametrize_with_model_checks",
]
