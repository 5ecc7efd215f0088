"""Checks of attention weights: each gives a finding, and has an ``assert_*`` that raises it."""

from attncheck.checks.causal import assert_causal, check_causal
from attncheck.checks.close import assert_attention_close, check_attention_close
from attncheck.checks.distinct import assert_heads_distinct, check_heads_distinct
from attncheck.checks.entropy import assert_entropy, check_entropy
from attncheck.checks.finding import Evidence, Finding, Offender, Position
from attncheck.checks.mask import assert_mask_respected, check_mask_respected
from attncheck.checks.pattern import assert_pattern, check_pattern
from attncheck.checks.registry import CHECKS, Check
from attncheck.checks.render import render
from attncheck.checks.row_sums import assert_row_stochastic, check_row_stochastic
from attncheck.checks.segments import assert_segments_isolated, check_segments_isolated
from attncheck.checks.sink import assert_sink_mass, check_sink_mass
from attncheck.checks.window import assert_sliding_window, check_sliding_window

__all__ = [
    "CHECKS",
    "Check",
    "Evidence",
    "Finding",
    "Offender",
    "Position",
    "assert_attention_close",
    "assert_causal",
    "assert_entropy",
    "assert_heads_distinct",
    "assert_mask_respected",
    "assert_pattern",
    "assert_row_stochastic",
    "assert_segments_isolated",
    "assert_sink_mass",
    "assert_sliding_window",
    "check_attention_close",
    "check_causal",
    "check_entropy",
    "check_heads_distinct",
    "check_mask_respected",
    "check_pattern",
    "check_row_stochastic",
    "check_segments_isolated",
    "check_sink_mass",
    "check_sliding_window",
    "render",
]
