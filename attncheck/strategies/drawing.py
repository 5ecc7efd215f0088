"""What the strategies share: arguments that are values or strategies, arrays that shrink."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeAlias, TypeVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from numpy.typing import NDArray

__all__ = ["Given", "drawn", "grid"]

T = TypeVar("T")
Given: TypeAlias = T | SearchStrategy[T]
"""A value, or a strategy that draws one."""


def drawn(draw: DrawFn, given: Given[T]) -> T:
    """Return a value, drawing it first if it is a strategy."""
    return draw(given) if isinstance(given, SearchStrategy) else given


def grid(
    draw: DrawFn, shape: tuple[int, ...], elements: SearchStrategy[float]
) -> NDArray[np.float64]:
    """Draw a float64 array that shrinks in content and lets every dimension shrink by itself.

    The content is drawn as nested lists of any length up to the shape, and repeated as often as
    needed to fill it; nothing at all fills with 0. So no number's place depends on another
    dimension: Hypothesis can take a head away without upsetting what comes after it, which it
    could not do with an array drawn number by number.
    """
    return _fill(draw(_nested(shape, elements)), shape)


@lru_cache(maxsize=1024)
def _nested(shape: tuple[int, ...], elements: SearchStrategy[float]) -> SearchStrategy[Any]:
    if not shape:
        return elements
    return st.lists(_nested(shape[1:], elements), max_size=shape[0])


def _fill(content: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    if not shape:
        return np.asarray(content, dtype=np.float64)
    if not content:
        return np.zeros(shape)
    parts = [_fill(part, shape[1:]) for part in content]
    return np.stack([parts[i % len(parts)] for i in range(shape[0])])
