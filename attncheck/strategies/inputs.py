"""Queries, keys and values."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from attncheck.strategies.drawing import Given, drawn, drawn_dtype, grid
from attncheck.strategies.shapes import Shape, attention_shapes, drawn_shape

__all__ = ["QueryKeyValue", "qkv"]

QUARTERS = st.integers(-12, 12).map(lambda quarters: quarters / 4)
"""Numbers that every dtype holds exactly, products and small sums of them included."""


class QueryKeyValue(NamedTuple):
    """Inputs of one attention call.

    Attributes:
        query: ``(batch, head, query, width)``.
        key: ``(batch, key-value head, key, width)``.
        value: ``(batch, key-value head, key, value width)``.
    """

    query: Tensor
    key: Tensor
    value: Tensor


@st.composite
def _inputs(
    draw: DrawFn,
    shape: Given[Shape],
    widths: tuple[Given[int], Given[int]],
    grouped: bool,
    scale: Given[float],
    dtype: Given[torch.dtype],
) -> QueryKeyValue:
    batch, heads, n_query, n_key = drawn_shape(draw, shape)
    divisors = [n for n in range(heads, 0, -1) if heads % n == 0]
    shared = draw(st.sampled_from(divisors)) if grouped else heads
    width, value_width = (drawn(draw, given) for given in widths)
    if width < 1 or value_width < 1:
        raise ValueError(f"width, value_width: got {width}, {value_width}; expected 1 or more")
    factor, kind = drawn(draw, scale), drawn_dtype(draw, dtype)
    query, key, value = (
        torch.from_numpy(grid(draw, size, QUARTERS))
        for size in (
            (batch, heads, n_query, width),
            (batch, shared, n_key, width),
            (batch, shared, n_key, value_width),
        )
    )
    return QueryKeyValue((query * factor).to(kind), key.to(kind), value.to(kind))


def qkv(
    *,
    shape: Given[Shape] | None = None,
    relation: Literal["square", "cache", "any"] = "any",
    width: Given[int] = st.integers(1, 4),  # noqa: B008 - a strategy is immutable
    value_width: Given[int] = st.integers(1, 4),  # noqa: B008
    grouped: bool = True,
    scale: Given[float] = 1.0,
    dtype: Given[torch.dtype] = torch.float32,
) -> SearchStrategy[QueryKeyValue]:
    """Draw queries, keys and values as ``scaled_dot_product_attention`` takes them.

    The numbers are quarters from -3 to 3: exact in every dtype, so that a difference between two
    implementations is theirs and not the input's. The minimal example is all zeros.

    Args:
        shape: ``(batch, head, query, key)``. Default: `attention_shapes` of the ``relation``.
        relation: How many queries for how many keys, if ``shape`` is not given.
        width: Of a query and a key.
        value_width: Of a value; it may differ from ``width``.
        grouped: Also draw fewer key-value heads than query heads (grouped-query attention).
        scale: The queries are multiplied by it; large ones make attention sharp.
        dtype: Of all three.

    Raises:
        ValueError: ``relation`` is not known; when drawing: a size or a dtype is impossible.

    Example:
        >>> from hypothesis import find
        >>> query, key, value = find(qkv(), lambda x: x.query.shape[1] > x.key.shape[1])
        >>> query.tolist(), key.shape
        ([[[[0.0]], [[0.0]]]], torch.Size([1, 1, 1, 1]))
    """
    chosen = attention_shapes(relation) if shape is None else shape
    return _inputs(chosen, (width, value_width), grouped, scale, dtype)
