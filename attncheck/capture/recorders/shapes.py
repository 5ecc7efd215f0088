"""Bring what modules compute on into ``(batch, head, query, ...)``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from attncheck.capture.recorders.head_count import HeadCount, declared_heads, is_batch

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """What the axes ahead of keys, or of features, are: sequences, heads and queries.

    Attributes:
        split: For each of these axes, that of the queries last, the lengths of its parts: one that
            holds sequences and heads has two, and so has one that holds heads and queries.
        heads: Numbers of the parts that are heads, counted over all axes.
        queries: Numbers of those that are queries; what is neither is a sequence.
        told: Nothing else is possible; otherwise what becomes of the output tells.
        possible: How many heads there may be: as many as came in side by side, in the features of a
            sequence; where that is not known, as many as are declared. Empty: nothing says.
        beside: How many there may be if some lie in the axis of the queries; None: nothing says.
        lacking: Axes that keys lack, if the queries may be another one of them.
        combined: Axes of weights that were combined before they met the values: heads anyway.
    """

    split: tuple[tuple[int, ...], ...]
    heads: tuple[int, ...]
    queries: tuple[int, ...]
    told: bool = True
    possible: frozenset[int] = frozenset()
    beside: frozenset[int] | None = frozenset()
    lacking: tuple[int, ...] = ()
    combined: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, module: nn.Module, axes: Sequence[int], size: int, combined: Sequence[int] = ()
    ) -> Layout:
        """Find the heads of ``(..., query, size)``, in a call that is running.

        Where the module declares their number, and one axis alone is as long, that is theirs. For
        the rest this is the likeliest: in one axis the heads lie within each sequence, as many as
        are declared or as there are queries for each position that came in; of several axes the
        last one is theirs, as nearly everybody has it.

        Args:
            module: That attends.
            axes: Lengths of all axes of its query, or its weights, but for the last one.
            size: Length of the last axis of its query or value.
            combined: See `Layout`.
        """
        *leading, n_query = (length for axis, length in enumerate(axes) if axis not in combined)
        layout = _of_axes(module, tuple(leading), n_query, size)
        return layout._among(axes, combined) if combined else layout

    @classmethod
    def of_groups(cls, module: nn.Module, axes: Sequence[int], lacking: Sequence[int]) -> Layout:
        """Find the heads where several of the query share a key, in axes of their own.

        Args:
            module: That attends.
            axes: Lengths of the axes but for the keys.
            lacking: Numbers of those that keys lack, that of the queries last.
        """
        last, declared = len(axes) - 1, declared_heads(module)
        first = max(1, lacking[0] - 1)
        count = math.prod(axes[first:])
        fitting = [axis for axis in lacking if count // max(1, axes[axis]) in declared]
        return cls(
            tuple((length,) for length in axes),
            tuple(range(first, last)),
            (last,),
            told=last == 2 and lacking[0] == 1 and fitting == [last],
            possible=frozenset(declared),
            lacking=tuple(lacking),
        )

    def of_one_head(self) -> Layout:
        """Read all axes before the queries as sequences."""
        split = tuple((length,) for length in self.axes)
        return Layout(split, self.combined, (len(split) - 1,))

    @property
    def axes(self) -> tuple[int, ...]:
        """Lengths of the axes, that of the queries last."""
        return tuple(math.prod(parts) for parts in self.split)

    @property
    def leading(self) -> tuple[int, ...]:
        """Lengths of the axes before the queries, but for combined ones."""
        return tuple(n for axis, n in enumerate(self.axes[:-1]) if axis not in self.combined)

    def allows(self, n_heads: int) -> bool:
        """Whether there may be so many heads."""
        return not self.possible or n_heads in self.possible

    @property
    def plain(self) -> bool:
        """Whether tensors of four dimensions stay as they are."""
        return self.heads == (1,) and self.queries == (2,) and [*map(len, self.split)] == [1, 1, 1]

    @property
    def mixes(self) -> bool:
        """Whether some heads lie in the axis of the queries."""
        return any(head >= sum(map(len, self.split[:-1])) for head in self.heads)

    @property
    def n_heads(self) -> int:
        """Number of heads of the query."""
        parts = [part for axis in self.split for part in axis]
        return math.prod(parts[number] for number in self.heads)

    def apply(self, tensor: Tensor) -> Tensor:
        """Turn ``(..., query, size)`` into ``(batch, head, query, size)``."""
        if self.plain and tensor.ndim == 4:
            return tensor
        sizes = self._sizes(tensor.shape[:-1])
        return self._turned(tensor.reshape(*sizes, tensor.shape[-1]), sizes, self.queries)

    def apply_to_keys(self, tensor: Tensor) -> Tensor:
        """Turn ``(..., key, size)`` into ``(batch, key-value head, key, size)``.

        Heads that lie beside the queries share a key; where they are not the inner ones, each gets
        its own copy of it.
        """
        if self.plain and tensor.ndim == 4:
            return tensor
        sizes = self._sizes(tensor.shape[:-2])
        beside = tuple(self.split[-1])
        inner = [number >= len(sizes) for number in self.heads]
        shared = [
            part if len(sizes) + i in self.heads and inner != sorted(inner) else 1
            for i, part in enumerate(beside)
        ]
        whole = tensor.reshape(*sizes, *(1 for _ in beside), *tensor.shape[-2:])
        whole = whole.expand(*sizes, *shared, *tensor.shape[-2:])
        sizes = [*sizes, *shared, tensor.shape[-2]]
        rest = [n for n in range(len(sizes) - 1 - len(beside), len(sizes)) if n not in self.heads]
        return self._turned(whole, sizes, rest)

    def _turned(self, whole: Tensor, sizes: Sequence[int], rows: Sequence[int]) -> Tensor:
        """Put parts in order: sequences, heads, ``rows``."""
        batch = [part for part in range(len(sizes)) if part not in (*self.heads, *rows)]
        turned = whole.permute(*batch, *self.heads, *rows, len(sizes))
        made = (math.prod(sizes[part] for part in parts) for parts in (batch, self.heads, rows))
        return turned.reshape(*made, whole.shape[-1])

    def _sizes(self, shape: Sequence[int]) -> list[int]:
        """Lengths of the parts of the first axes."""
        sizes: list[int] = []
        for held, parts in zip(shape, self.split, strict=False):
            sizes += self._parts(held, parts, len(sizes))
        return sizes

    def _parts(self, held: int, parts: tuple[int, ...], first: int) -> list[int]:
        """Lengths of the parts of an axis; key and value may have fewer heads than the query."""
        whole = math.prod(parts)
        if held == whole or len(parts) == 1:
            return [held] if len(parts) == 1 else list(parts)
        return [
            part * held // whole if first + number in self.heads else part
            for number, part in enumerate(parts)
        ]

    def _among(self, axes: Sequence[int], combined: Sequence[int]) -> Layout:
        """Add combined axes, which are heads, to those that it was made for."""
        split: list[tuple[int, ...]] = []
        moved: list[int] = []
        heads: list[int] = []
        own = iter(self.split)
        for axis, length in enumerate(axes):
            parts = (length,) if axis in combined else next(own)
            first = sum(map(len, split))
            (heads if axis in combined else moved).extend(range(first, first + len(parts)))
            split.append(parts)
        return Layout(
            tuple(split),
            tuple(sorted((*heads, *(moved[number] for number in self.heads)))),
            tuple(moved[number] for number in self.queries),
            self.told,
            self.possible,
            self.beside,
            combined=tuple(combined),
        )


def _of_axes(module: nn.Module, leading: tuple[int, ...], n_query: int, size: int) -> Layout:
    split = tuple((length,) for length in (*leading, n_query))
    last, declared = len(leading) - 1, declared_heads(module)
    queries = (last + 1,)
    if declared == {1} and leading and leading[-1] > 1:
        return Layout(split, (), queries)
    if len(leading) < 2:
        return _of_one_axis(leading, n_query, HeadCount.of(module, leading, n_query, size))
    found = [axis for axis, count in enumerate(leading) if count in declared]
    if len(leading) > 2:
        if not found and leading[-1] * leading[-2] in declared:
            return Layout(split, (last - 1, last), queries)
        found = [axis for axis in found if axis] or found  # the batch leads, as a rule
    told = found == [last] and leading.count(leading[last]) == 1
    if told and (last > 1 or not is_batch(module, (*leading, n_query), size)):
        return Layout(split, (last,), queries)
    count = HeadCount.of(module, leading, n_query, size)
    if leading == (1, 1) and count.beside(leading, n_query) == frozenset():
        return Layout(split, (last,), queries)
    counted = count.counted if count.whole else None
    alike = [axis for axis, held in enumerate(leading) if held == counted]
    axis = alike[0] if len(alike) == 1 else found[0] if len(found) == 1 else last
    return Layout(split, (axis,), queries, False, count.possible, count.beside(leading, n_query))


def _of_one_axis(leading: tuple[int, ...], n_query: int, count: HeadCount) -> Layout:
    """Read an axis that may hold sequences and heads, or none."""
    held, split = math.prod(leading), tuple((length,) for length in (*leading, n_query))
    heads, counted = count.in_one_axis(held), count.counted if count.whole else None
    beside, queries = count.beside(leading, n_query), (len(leading),)
    if held == 1:
        told = beside == frozenset()
        axes = tuple(range(len(leading)))
        return Layout(split, axes, queries, told, count.possible, beside)
    if heads == held == counted != n_query and count.batch == 1:
        return Layout(split, (0,), queries)
    if heads in (1, held):
        first = (0,) if heads > 1 else ()
        return Layout(split, first, queries, False, count.possible, beside)
    parts = ((held // heads, heads), (n_query,))
    return Layout(parts, (1,), (2,), False, count.possible, beside)
