"""Evaluators of the same measures: dense, from weights; blocked, from query and key."""

from attncheck.evaluate.blocked import profile_blocked
from attncheck.evaluate.dense import profile_attention
from attncheck.evaluate.dispatch import choose, profile_layer

__all__ = ["choose", "profile_attention", "profile_blocked", "profile_layer"]
