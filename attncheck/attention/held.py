"""The fields of a layer that are made when they are first read: descriptors for a dataclass."""

from __future__ import annotations

import weakref
from typing import Any, Final, overload

from torch import Tensor

from attncheck.attention.query_key import QueryKey
from attncheck.attention.quiet import quiet

__all__ = ["SinkMass", "Weights", "held_by", "held_fields", "state_of"]

WEIGHTS: Final = "weights"
SINK_MASS: Final = "sink_mass"
MADE: Final = "_made"
"""Weak reference to weights that somebody still holds, of a layer that keeps its query and key."""


def held_by(layer: Any) -> Tensor | QueryKey:
    """Return a layer's weights or what they are made from, without making them."""
    held: Tensor | QueryKey = vars(layer)[WEIGHTS]
    return held


def held_fields(layer: Any) -> dict[str, Any]:
    """Return the fields of this kind as they are, made or not."""
    return {name: vars(layer)[name] for name in (WEIGHTS, SINK_MASS)}


def state_of(layer: Any) -> dict[str, Any]:
    """Return what copying and pickling take along."""
    return {name: value for name, value in vars(layer).items() if name != MADE}


class Weights:
    """A tensor; where a `QueryKey` was given, made from it when first read."""

    @overload
    def __get__(self, layer: None, owner: type) -> Weights: ...
    @overload
    def __get__(self, layer: object, owner: type) -> Tensor: ...
    def __get__(self, layer: object, owner: type) -> Tensor | Weights:
        if layer is None:
            raise AttributeError  # a dataclass asks for a default; there is none
        held = held_by(layer)
        return _made(layer, held) if isinstance(held, QueryKey) else held

    def __set__(self, layer: object, value: Tensor | QueryKey) -> None:
        if not isinstance(value, Tensor | QueryKey):
            raise TypeError(f"weights: is {type(value).__name__}; expected a tensor or a QueryKey")
        if len(value.shape) != 4:
            raise ValueError(
                f"weights: has shape {tuple(value.shape)}; expected (batch, head, query, key). "
                "as_attention takes (query, key) and (head, query, key) too"
            )
        vars(layer)[WEIGHTS] = value


class SinkMass:
    """A tensor or None; where the weights are made from a `QueryKey`, made with them."""

    @overload
    def __get__(self, layer: None, owner: type) -> None: ...
    @overload
    def __get__(self, layer: object, owner: type) -> Tensor | None: ...
    def __get__(self, layer: object, owner: type) -> Tensor | None:
        if layer is None:
            return None
        held = held_by(layer)
        sink_mass: Tensor | None = vars(layer)[SINK_MASS]
        if sink_mass is None and isinstance(held, QueryKey) and held.sinks is not None:
            _made(layer, held)
            sink_mass = vars(layer)[SINK_MASS]
        return sink_mass

    def __set__(self, layer: object, value: Tensor | None) -> None:
        vars(layer)[SINK_MASS] = value


def _made(layer: object, record: QueryKey) -> Tensor:
    """Make weights and sink mass; keep the weights, unless the record is to last."""
    state = vars(layer)
    weights: Tensor | None = state[MADE]() if MADE in state else None
    if weights is not None:
        return weights
    with quiet(record.device.type):
        weights, state[SINK_MASS] = record.weights()
    if record.lasting:
        state[MADE] = weakref.ref(weights)
    else:
        state[WEIGHTS] = weights
    return weights
