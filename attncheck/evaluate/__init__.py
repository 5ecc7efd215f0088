"""Evaluators of the same measures: dense, from weights; blocked, from query and key; fused."""

from attncheck.evaluate.blocked import profile_blocked
from attncheck.evaluate.columns import column_sums
from attncheck.evaluate.dispatch import choose, profile_layer
from attncheck.evaluate.given import profile_given
from attncheck.evaluate.maps import profile_attention

__all__ = [
    "choose",
    "column_sums",
    "profile_attention",
    "profile_blocked",
    "profile_given",
    "profile_layer",
]
