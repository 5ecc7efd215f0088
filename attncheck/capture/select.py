"""Which layers, heads and queries to keep: indices, slices, names, patterns."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch
from torch import Tensor

__all__ = [
    "Chosen",
    "HeadChoice",
    "LayerChoice",
    "LayerSelection",
    "checked",
    "choose",
    "fits",
    "index_of",
]

LayerChoice: TypeAlias = int | str | slice | range | Iterable[int | str] | None
"""An index (negative counts from the end), a slice or range, a module path (that module and all
below it), a pattern such as ``"encoder.*"``, a list of those, or None for all."""

HeadChoice: TypeAlias = int | slice | Iterable[int] | None
"""Numbers of heads, or of queries (negative counts from the end), or None for all."""


class LayerSelection:
    """Decides which captured layers are wanted.

    Args:
        layers: See `LayerChoice`.
        modules: Paths of the model's modules: a name or pattern must fit one of them.

    Raises:
        TypeError: An entry is neither integer nor string.
        ValueError: A name or pattern fits no module.
    """

    def __init__(self, layers: LayerChoice, modules: Sequence[str]) -> None:
        self.everything = layers is None
        self._span: slice | None = _span("layers", layers) if isinstance(layers, slice) else None
        entries: list[Any] = []
        if isinstance(layers, str):
            entries = [layers]
        elif layers is not None and self._span is None:
            entries = _entries(layers)
        self._names = [entry for entry in entries if isinstance(entry, str)]
        others = [entry for entry in entries if not isinstance(entry, str)]
        self._indices = [index_of("layers", entry, "indices or names") for entry in others]
        for wanted in self._names:
            if not any(fits(name, wanted) for name in modules):
                raise ValueError(f"layers: no module fits {wanted!r}; {_listed(modules)}")

    @property
    def relative(self) -> bool:
        """Whether the choice depends on how many layers there are."""
        bounds = (self._span.start, self._span.stop, self._span.step) if self._span else ()
        numbers = [*self._indices, *(bound for bound in bounds if bound is not None)]
        return any(number < 0 for number in numbers)

    @property
    def tail(self) -> int | None:
        """How many last layers can be wanted, where nothing but those is; else None."""
        if self._names or self._span is not None or any(index >= 0 for index in self._indices):
            return None
        return max((-index for index in self._indices), default=None)

    def wants(self, index: int, name: str, total: int | None = None) -> bool:
        """Whether a layer is wanted; a `relative` choice needs the total."""
        if self.everything or any(fits(name, wanted) for wanted in self._names):
            return True
        if self._span is not None:
            if total is None:
                return index in range(*self._span.indices(index + 1))
            return index in range(*self._span.indices(total))
        below_zero = None if total is None else index - total
        return index in self._indices or (below_zero is not None and below_zero in self._indices)

    def require_met(self, names: Sequence[str]) -> None:
        """Raise if an entry fitted nothing of what the model ran.

        Args:
            names: Of all layers that ran, in execution order.

        Raises:
            ValueError: Names the entry and what exists.
        """
        total = len(names)
        for index in self._indices:
            if not -total <= index < total:
                raise ValueError(
                    f"layers: no layer {index}; the model ran {total}, 0 to {total - 1}: "
                    f"{', '.join(names[:6])}{', ...' if total > 6 else ''}"
                )
        for wanted in self._names:
            if not any(fits(name, wanted) for name in names):
                raise ValueError(
                    f"layers: no attention ran in {wanted!r}; it ran in {', '.join(names[:12])}"
                    f"{', ...' if total > 12 else ''}"
                )
        if self._span is not None and not range(*self._span.indices(total)):
            raise ValueError(f"layers: {self._span} selects none of the {total} that ran")
        if not (self.everything or self._indices or self._names or self._span):
            raise ValueError("layers: is empty; pass None for all layers")


@dataclass(frozen=True, eq=False)
class Chosen:
    """Some entries of an axis.

    Attributes:
        numbers: Which, in the order given.
        index: The same as int64 tensor; None: all of the axis, in its order.
    """

    numbers: tuple[int, ...]
    index: Tensor | None

    def of(self, tensor: Tensor, axis: int) -> Tensor:
        """Select along an axis, unless that axis is one entry for all."""
        if self.index is None or tensor.shape[axis] == 1:
            return tensor
        return tensor.index_select(axis, self.index)


def checked(choice: HeadChoice, argument: str) -> slice | tuple[int, ...] | None:
    """Return a choice of heads or queries as plain integers.

    Raises:
        TypeError: An entry is no integer.
    """
    if choice is None:
        return None
    if isinstance(choice, slice):
        return _span(argument, choice)
    expected = f"{argument.removesuffix('s').replace('querie', 'query')} numbers"
    return tuple(index_of(argument, entry, expected) for entry in _entries(choice))


def choose(
    choice: slice | tuple[int, ...] | None, count: int, device: torch.device, argument: str
) -> Chosen:
    """Apply a choice to an axis of a layer.

    Raises:
        ValueError: An entry does not exist, or none is chosen.
    """
    everything = tuple(range(count))
    if choice is None:
        return Chosen(everything, None)
    numbers = everything[choice] if isinstance(choice, slice) else choice
    one = {"heads": "head", "queries": "query"}[argument]
    if not count:
        raise ValueError(f"{argument}: the layer has no {argument} to choose from; pass None")
    for number in numbers:
        if not -count <= number < count:
            raise ValueError(
                f"{argument}: no {one} {number}; the layer has {count}, 0 to {count - 1}"
            )
    if not numbers:
        raise ValueError(f"{argument}: selects none of {count}; pass None for all {argument}")
    numbers = tuple(number % count for number in numbers)
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{argument}: names a {one} twice, which would be measured twice")
    if numbers == everything:
        return Chosen(everything, None)
    return Chosen(numbers, torch.tensor(numbers, device=device))


def _entries(choice: Any) -> list[Any]:
    """List what was chosen: one thing, or several."""
    several = isinstance(choice, Iterable) and getattr(choice, "ndim", 1) > 0
    return list(choice) if several and not isinstance(choice, str) else [choice]


def index_of(argument: str, entry: Any, expected: str) -> int:
    """Return an integer of any kind (numpy's, a tensor's) as Python's own.

    Args:
        argument: What the message calls it.
        entry: The integer.
        expected: What the message asks for.

    Raises:
        TypeError: It is none.
    """
    kind = str(getattr(entry, "dtype", type(entry).__name__))
    if "bool" not in kind:
        with suppress(TypeError):
            return operator.index(entry)
    raise TypeError(f"{argument}: {entry!r} is {type(entry).__name__}; expected {expected}")


def _span(argument: str, span: slice) -> slice:
    bounds = (span.start, span.stop, span.step)
    return slice(
        *(None if bound is None else index_of(argument, bound, "whole bounds") for bound in bounds)
    )


def fits(name: str, wanted: str) -> bool:
    """Whether a module is meant by a path or a pattern: it, or one above it.

    Args:
        name: Path of the module.
        wanted: Path or pattern.
    """
    return name == wanted or name.startswith(f"{wanted}.") or fnmatchcase(name, wanted)


def _listed(modules: Sequence[str]) -> str:
    shown = [name for name in modules if name]
    likely = [name for name in shown if "att" in name.lower()] or shown
    more = f" and {len(likely) - 8} more" if len(likely) > 8 else ""
    return f"the model has {', '.join(likely[:8])}{more}"
