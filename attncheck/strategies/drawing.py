"""What the strategies share: arguments that are values or strategies, arrays that shrink."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from numpy.typing import NDArray

__all__ = ["Given", "drawn", "drawn_dtype", "grid"]

T = TypeVar("T")
Given: TypeAlias = T | SearchStrategy[T]
"""A value, or a strategy that draws one."""


def drawn(draw: DrawFn, given: Given[T]) -> T:
    """Return a value, drawing it first if it is a strategy."""
    return draw(given) if isinstance(given, SearchStrategy) else given


def drawn_dtype(draw: DrawFn, given: Given[torch.dtype]) -> torch.dtype:
    """Return a floating dtype, drawn if need be.

    Raises:
        ValueError: It holds no fractions.
    """
    dtype = drawn(draw, given)
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype: got {dtype!r}; expected a floating one, such as torch.float32")
    return dtype


def grid(
    draw: DrawFn, shape: tuple[int, ...], elements: SearchStrategy[float]
) -> NDArray[np.float64]:
    """Draw a float64 array that shrinks in content and lets every dimension shrink by itself.

    The content is drawn as nested lists of one element or more, repeated as often as needed to
    fill the shape. So no number's place depends on another dimension: Hypothesis can take a head
    away without upsetting what comes after it, which it could not do with an array drawn number
    by number.
    """
    return _fill(draw(_nested(shape, elements)), shape)


@lru_cache(maxsize=1024)
def _nested(shape: tuple[int, ...], elements: SearchStrategy[float]) -> SearchStrategy[Any]:
    if not shape:
        return elements
    # Room for two where one is needed: a length that cannot vary is drawn in another way.
    return st.lists(_nested(shape[1:], elements), min_size=1, max_size=max(2, shape[0]))


def _fill(content: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    if not shape:
        return np.asarray(content, dtype=np.float64)
    parts = [_fill(part, shape[1:]) for part in content[: shape[0]]]
    return np.stack([parts[i % len(parts)] for i in range(shape[0])])
