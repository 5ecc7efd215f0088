"""`find` that repeats: no database of earlier runs, a fixed random state."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TypeVar

from hypothesis import Phase, find, settings
from hypothesis.strategies import SearchStrategy

T = TypeVar("T")


def smallest(strategy: SearchStrategy[T], condition: Callable[[T], bool] = lambda _: True) -> T:
    """Return the minimal example that Hypothesis finds."""
    quiet = settings(
        database=None,
        max_examples=2000,
        deadline=None,
        derandomize=False,
        phases=[Phase.generate, Phase.shrink],  # to explain an example takes longer than both
    )
    return find(strategy, condition, settings=quiet, random=Random(0))
