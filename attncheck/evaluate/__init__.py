"""Evaluators of the same measures: dense, from given weights."""

from attncheck.evaluate.dense import profile_attention, profile_layer

__all__ = ["profile_attention", "profile_layer"]
