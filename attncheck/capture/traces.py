"""Follow a tensor through the functions that a model applies to it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from torch import Tensor

__all__ = ["Hiding", "Part", "Trace", "Traces"]

Hiding: TypeAlias = tuple[Literal["visible", "hidden", "added"], Tensor]
"""A mask that a model applied to its scores, and in which of three ways."""


@dataclass(frozen=True, eq=False)
class Part:
    """Raised scores of some keys that multiplied their values.

    Attributes:
        raised: ``(..., query, key)``, as they were then.
        factor: What the product was multiplied with since; None: nothing.
        product: Number of their product of query and key.
        storage: Address of the memory that their keys are a view of.
        offset: Where in it they begin.
    """

    raised: Tensor
    factor: Tensor | None = None
    product: int = -1
    storage: int = 0
    offset: int = 0

    def times(self, factor: Tensor) -> Part:
        """Return the part of a product that was multiplied once more, row by row."""
        return replace(self, factor=factor if self.factor is None else self.factor * factor)

    def scaled(self) -> Tensor:
        """Return ``(..., query, key)`` with its factor."""
        return self.raised if self.factor is None else self.raised * self.factor


@dataclass(frozen=True, eq=False)
class Trace:
    """What is known about a tensor on its way from query and key to value.

    Attributes:
        stage: Before softmax, after it, or on the way there by hand: ``"pairs"`` of query and key
            whose features are not yet one number, ``"raised"`` by `exp` and not known to be
            divided by its sum, ``"weighted"`` values that are not yet summed, ``"summed"`` with
            the values and not yet divided.
        sizes: Lengths of axes that may be the keys; reshaping makes no new ones.
        hiding: Masks applied to the scores.
        product: Number of the product of query and key in the capture.
        softmax: Number of the softmax over it.
        n_key: Size of the dimension that softmax ran over.
        over_last: Whether that was the last one.
        clean: The weights before dropout, where dropout changed them; of what is ``"weighted"``
            the weights as they were multiplied.
        sliced: A column of weights was cut off, as models with a sink do.
        foreign: Scores that are no product of query and key were joined to these.
        columns: Range of the keys that this part of the weights is for; None: all keys.
        whole: The weights that it is a part of.
        value: What ``"weighted"`` weights were multiplied with.
        parts: What a ``"summed"`` tensor is the sum of.
        reported: It was found to be the output of attention.
        shifted: A number for each row was subtracted from the scores, such as their largest.
        storage: Address of the memory that the keys are a view of.
        offset: Where in it they begin.
    """

    stage: Literal["pairs", "scores", "raised", "weighted", "summed", "weights"]
    sizes: frozenset[int]
    hiding: tuple[Hiding, ...] = ()
    product: int = -1
    softmax: int = -1
    n_key: int = 0
    over_last: bool = True
    clean: Tensor | None = field(default=None, repr=False)
    sliced: bool = False
    foreign: bool = False
    columns: tuple[int, int] | None = None
    whole: Tensor | None = field(default=None, repr=False)
    value: Tensor | None = field(default=None, repr=False)
    parts: tuple[Part, ...] = ()
    reported: bool = False
    shifted: bool = False
    storage: int = 0
    offset: int = 0

    def with_hiding(self, *more: Hiding) -> Trace:
        """Return the trace with further masks."""
        return replace(self, hiding=(*self.hiding, *more))


class Traces:
    """Traces by tensor; a tensor's trace ends with the tensor."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[weakref.ref[Tensor], Trace]] = {}

    def __bool__(self) -> bool:
        return bool(self._held)

    def __getitem__(self, tensor: Tensor) -> Trace | None:
        held = self._held.get(id(tensor))
        if held is None:
            return None
        if held[0]() is not tensor:
            del self._held[id(tensor)]
            return None
        return held[1]

    def __setitem__(self, tensor: Tensor, trace: Trace) -> None:
        key = id(tensor)

        def forget(reference: weakref.ref[Tensor]) -> None:
            held = self._held.get(key)
            if held is not None and held[0] is reference:
                del self._held[key]

        self._held[key] = weakref.ref(tensor, forget), trace

    def first(self, values: Iterable[Any]) -> tuple[Tensor, Trace] | None:
        """Return the first traced tensor among some arguments."""
        for value in values:
            if isinstance(value, Tensor):
                trace = self[value]
                if trace is not None:
                    return value, trace
        return None
