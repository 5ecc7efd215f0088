"""Attention masks of every kind and form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from numpy.typing import NDArray
from torch import Tensor

from attncheck.strategies.drawing import Given, drawn, grid
from attncheck.strategies.shapes import Shape, drawn_shape

__all__ = ["MASK_KINDS", "attention_masks", "require_kinds"]

Visible = NDArray[np.bool_]


def _positions(shape: Shape) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """Return key positions of the queries ``(query, 1)`` and of the keys ``(key,)``."""
    n_query, n_key = shape[2:]
    return np.arange(n_query)[:, None] + max(n_key - n_query, 0), np.arange(n_key)


def _full(_: DrawFn, shape: Shape) -> Visible:
    return np.ones((1, 1, *shape[2:]), bool)


def _causal(_: DrawFn, shape: Shape) -> Visible:
    queries, keys = _positions(shape)
    return (keys <= queries)[None, None]


def _padding(draw: DrawFn, shape: Shape) -> Visible:
    """Hide keys on the right, and sometimes on the left, of each sequence."""
    batch, _, _, n_key = shape
    keys = np.arange(n_key)
    drawn_ends = grid(draw, (batch, 2), st.integers(0, n_key - 1))
    hidden, left = drawn_ends[:, :1], drawn_ends.min(-1, keepdims=True)
    visible: Visible = (keys >= left) & (keys < n_key - hidden + left)
    return visible[:, None, None]


def _window(draw: DrawFn, shape: Shape) -> Visible:
    """Show the nearest keys behind each query, and sometimes before it."""
    queries, keys = _positions(shape)
    width = shape[3] - draw(st.integers(0, shape[3] - 1))
    visible = (keys <= queries) & (queries - keys < width)
    if draw(st.booleans()):
        visible |= (keys >= queries) & (keys - queries < width)
    return visible[None, None]


def _segments(draw: DrawFn, shape: Shape) -> Visible:
    """Show each query the keys of its own segment."""
    queries, keys = _positions(shape)
    cuts = np.array(draw(st.lists(st.integers(1, shape[3]), max_size=3)), dtype=int)
    segment = (keys[:, None] >= cuts).sum(-1)
    same: Visible = segment[queries.clip(max=shape[3] - 1)] == segment
    return same[None, None]


def _arbitrary(draw: DrawFn, shape: Shape) -> Visible:
    """Hide any keys, differently for each head and sequence."""
    visible: Visible = grid(draw, shape, st.booleans()) == 0
    return visible


MASK_KINDS: Final = MappingProxyType(
    {
        "full": _full,
        "causal": _causal,
        "padding": _padding,
        "window": _window,
        "segments": _segments,
        "arbitrary": _arbitrary,
    }
)
"""What a mask may be, simplest first."""


def require_kinds(kinds: Sequence[str], name: str) -> None:
    """Raise ValueError unless there are kinds and all are known."""
    if isinstance(kinds, str) or not kinds or any(kind not in MASK_KINDS for kind in kinds):
        given = repr(kinds) if isinstance(kinds, str) else list(kinds)
        raise ValueError(f"{name}: got {given}; expected a list of some of {', '.join(MASK_KINDS)}")


@st.composite
def _masks(
    draw: DrawFn,
    shape: Given[Shape],
    kinds: Sequence[str],
    form: Given[str],
    empty_rows: bool,
) -> Tensor:
    size = drawn_shape(draw, shape)
    make: Callable[[DrawFn, Shape], Visible]
    make = MASK_KINDS[draw(st.sampled_from(kinds))]
    visible = make(draw, size)
    visible[..., 0] |= ~visible.any(-1)
    if empty_rows:
        blind = draw(st.lists(st.integers(0, size[2] - 1), max_size=size[2]))
        visible = visible & ~np.isin(np.arange(size[2]), blind)[:, None]
    mask = torch.from_numpy(visible)
    chosen = drawn(draw, form)
    if chosen not in ("bool", "float"):
        raise ValueError(f"form: got {chosen!r}; expected 'bool' or 'float'")
    if chosen == "bool":
        return mask
    return torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)


def attention_masks(
    shape: Given[Shape],
    *,
    kinds: Sequence[str] = tuple(MASK_KINDS),
    form: Given[Literal["bool", "float"]] = "bool",
    empty_rows: bool = False,
) -> SearchStrategy[Tensor]:
    """Draw masks that every query sees at least one key through; the minimal one hides nothing.

    Args:
        shape: ``(batch, head, query, key)`` of the weights. With fewer queries than keys the
            queries are the last positions.
        kinds: Some of ``"full"``, ``"causal"``, ``"padding"`` (right and left), ``"window"``
            (causal and two-sided), ``"segments"``, ``"arbitrary"``.
        form: ``"bool"``: True where visible. ``"float"``: added to the scores, 0 or ``-inf``.
        empty_rows: Also draw masks that leave some queries without any key.

    Returns:
        A strategy for four-dimensional masks that broadcast to ``shape``.

    Raises:
        ValueError: A kind is not known; when drawing: ``shape`` or ``form`` is impossible.

    Example:
        >>> from hypothesis import find
        >>> find(attention_masks((1, 1, 3, 3)), lambda mask: not mask.all()).int().tolist()
        [[[[1, 0, 0], [1, 1, 0], [1, 1, 1]]]]
    """
    require_kinds(kinds, "kinds")
    return _masks(shape, tuple(kinds), form, empty_rows)
