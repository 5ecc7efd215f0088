"""Shapes of attention weights."""

from __future__ import annotations

from typing import Literal

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from attncheck.attention.arguments import whole_numbers
from attncheck.strategies.drawing import Given, drawn

__all__ = ["Shape", "attention_shapes", "drawn_shape"]

Shape = tuple[int, int, int, int]
"""``(batch, head, query, key)``."""


def drawn_shape(draw: DrawFn, given: Given[Shape]) -> Shape:
    """Return a shape, drawn if need be, that weights can have.

    Raises:
        TypeError: It holds something else than whole numbers.
        ValueError: It is none.
    """
    what = "(batch, head, query, key), 1 or more each"
    shape = tuple(whole_numbers(drawn(draw, given), "shape", what))
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"shape: got {shape}; expected {what}")
    return shape


@st.composite
def _shapes(
    draw: DrawFn,
    relation: Literal["square", "cache", "any"],
    lengths: tuple[int, int],
    max_batch: int,
    max_heads: int,
) -> Shape:
    shortest, longest = lengths
    n_key = draw(st.integers(shortest, longest))
    if relation == "square":
        n_query = n_key
    else:
        n_query = draw(st.integers(shortest, n_key if relation == "cache" else longest))
    return draw(st.integers(1, max_batch)), draw(st.integers(1, max_heads)), n_query, n_key


def attention_shapes(
    relation: Literal["square", "cache", "any"] = "square",
    *,
    min_length: int = 1,
    max_length: int = 6,
    max_batch: int = 2,
    max_heads: int = 3,
) -> SearchStrategy[Shape]:
    """Draw shapes ``(batch, head, query, key)``; the minimal one is the smallest allowed.

    Args:
        relation: ``"square"``: as many queries as keys. ``"cache"``: as many or fewer queries, as
            when a key-value cache holds the rest. ``"any"``: also more, as in cross-attention.
        min_length: Fewest queries and keys.
        max_length: Most queries and keys.
        max_batch: Most sequences.
        max_heads: Most heads.

    Raises:
        ValueError: The limits leave nothing to draw.

    Example:
        >>> from hypothesis import find
        >>> find(attention_shapes("any"), lambda shape: shape[2] > shape[3])
        (1, 1, 2, 1)
    """
    if relation not in ("square", "cache", "any"):
        raise ValueError(f"relation: got {relation!r}; expected 'square', 'cache' or 'any'")
    if not 1 <= min_length <= max_length or max_batch < 1 or max_heads < 1:
        raise ValueError(
            f"min_length, max_length, max_batch, max_heads: got {min_length}, {max_length}, "
            f"{max_batch}, {max_heads}; expected 1 <= min_length <= max_length and at least 1 each"
        )
    return _shapes(relation, (min_length, max_length), max_batch, max_heads)
