"""The promises, one file each; importing this fills the registry."""

from __future__ import annotations

from attncheck.model_checks.promises.deterministic import assert_deterministic
from attncheck.model_checks.promises.dropout import assert_dropout_off_in_eval
from attncheck.model_checks.promises.future import assert_no_future_leakage
from attncheck.model_checks.promises.padding import assert_padding_invariant
from attncheck.model_checks.promises.batch import assert_batch_invariant
from attncheck.model_checks.promises.cache import assert_cache_consistent
from attncheck.model_checks.promises.backends import assert_backends_agree
from attncheck.model_checks.promises.window import assert_window_respected
from attncheck.model_checks.promises.segments import assert_segments_isolated
from attncheck.model_checks.promises.gradients import assert_gradients_flow
from attncheck.model_checks.promises.positions import (
    assert_permutation_equivariant,
    assert_position_sensitive,
)

__all__ = [
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
]
