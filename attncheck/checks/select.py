"""`heads=`: which heads an assertion is about."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, TypeAlias

import torch

from attncheck.attention import LayerAttention, head_name

__all__ = ["HeadSelection", "narrow", "select_heads"]

HeadSelection: TypeAlias = str | int | Sequence[str | int | tuple[int, int]] | None
"""``"L5H1"``, ``"L5"`` (a whole layer), ``3`` (head 3 of every layer), ``(5, 1)`` inside a list,
a list of those, or None for all heads."""

NAME: Final = re.compile(r"L(\d+)(?:H(\d+))?")
FORMS: Final = "'L5H1', 'L5' for a layer, 3 for head 3 of every layer, [(5, 1)], or a list of those"


def select_heads(
    layers: Sequence[LayerAttention], heads: HeadSelection, *, name: str = "heads"
) -> list[LayerAttention]:
    """Keep the chosen heads of each layer; layers without any are left out.

    Args:
        layers: What `as_attention` holds.
        heads: The selection; layer and head numbers are the model's.
        name: What messages call the selection.

    Raises:
        ValueError: Nothing is chosen, something chosen is not there, or a pair is ambiguous.
        TypeError: A selector is of no known kind.

    Example:
        >>> layers = [LayerAttention(torch.ones(1, 4, 2, 2), index=number) for number in range(3)]
        >>> [(layer.index, layer.heads) for layer in select_heads(layers, ["L1H3", "L2"])]
        [(1, (3,)), (2, (0, 1, 2, 3))]
    """
    if heads is None:
        return list(layers)
    chosen: list[set[int]] = [set() for _ in layers]
    for selector in _as_list(heads, name):
        layer_number, head_number = _parse(selector, name)
        hits = [
            (place, position)
            for place, layer in enumerate(layers)
            if layer_number in (None, layer.index)
            for position, number in enumerate(layer.heads)
            if head_number in (None, number)
        ]
        if not hits:
            raise ValueError(f"{name}: no head {selector!r}; there are {_there(layers)}")
        for place, position in hits:
            chosen[place].add(position)
    return [narrow(layer, sorted(kept)) for layer, kept in zip(layers, chosen, strict=True) if kept]


def narrow(layer: LayerAttention, positions: Sequence[int]) -> LayerAttention:
    """Return the layer with only the heads at some positions of its head axis."""
    if len(positions) == layer.n_heads:
        return layer
    index = torch.tensor(positions, device=layer.weights.device)
    mask, sink = layer.mask, layer.sink_mass
    if mask is not None and mask.shape[1] > 1:
        mask = mask.index_select(1, index.to(mask.device))
    if sink is not None:
        sink = sink.index_select(1, index.to(sink.device))
    return replace(
        layer,
        weights=layer.weights.index_select(1, index),
        mask=mask,
        sink_mass=sink,
        heads=tuple(layer.heads[position] for position in positions),
    )


def _as_list(heads: Any, name: str) -> list[Any]:
    if isinstance(heads, str) or _is_number(heads):
        return [heads]
    if not isinstance(heads, Iterable) or isinstance(heads, Mapping):
        raise TypeError(f"{name}: got {type(heads).__name__}; expected {FORMS}")
    listed = list(heads)
    if not listed:
        raise ValueError(f"{name}: empty, no head is selected; expected {FORMS}")
    if isinstance(heads, tuple) and len(heads) == 2 and all(map(_is_number, heads)):
        one, two = map(int, heads)
        raise ValueError(
            f"{name}: ({one}, {two}) may mean head {two} of layer {one}, or heads {one} and {two}; "
            f"write [({one}, {two})] or [{one}, {two}]"
        )
    return listed


def _parse(selector: Any, name: str) -> tuple[int | None, int | None]:
    """Read one selector as (layer, head), None for any."""
    if isinstance(selector, str):
        found = NAME.fullmatch(selector)
        if not found:
            raise ValueError(f"{name}: cannot read {selector!r}; expected {FORMS}")
        layer, head = found.groups()
        return int(layer), None if head is None else int(head)
    if isinstance(selector, tuple | list) and len(selector) == 2:
        return _integer(selector[0], name), _integer(selector[1], name)
    return None, _integer(selector, name)


def _is_number(value: Any) -> bool:
    """Whether this is one integer of any library; arrays have ``__index__`` too."""
    return hasattr(value, "__index__") and not getattr(value, "ndim", 0)


def _integer(value: Any, name: str) -> int:
    if not isinstance(value, bool) and _is_number(value):
        with suppress(TypeError):
            return operator.index(value)
    raise TypeError(f"{name}: cannot read {value!r}; expected {FORMS}")


def _there(layers: Sequence[LayerAttention]) -> str:
    first, last = layers[0], layers[-1]
    start = head_name(first.index, first.heads[0])
    end = head_name(last.index, last.heads[-1])
    return start if start == end else f"{start} to {end}"
