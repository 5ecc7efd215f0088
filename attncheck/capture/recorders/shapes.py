"""Bring what modules compute on into ``(batch, head, query, ...)``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from attncheck.capture.recorders.head_count import HeadCount, declared_heads

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """Which of the axes before the queries are heads.

    Attributes:
        split: For each of these axes, the lengths of its parts: one that holds sequences and heads
            has two.
        heads: Numbers of the parts that are heads, counted over all axes.
        told: Nothing else is possible; otherwise what becomes of the output tells.
        possible: How many heads there may be: as many as came in side by side, in the features of a
            sequence; where that is not known, as many as are declared. Empty: nothing says.
    """

    split: tuple[tuple[int, ...], ...]
    heads: tuple[int, ...]
    told: bool = True
    possible: frozenset[int] = frozenset()

    @classmethod
    def of(cls, module: nn.Module, tensor: Tensor, size: int) -> Layout:
        """Find the heads of ``(..., length, size)``, in a call that is running.

        Where the module declares their number, and one axis alone is as long, that is theirs. For
        the rest this is the likeliest: in one axis the heads lie within each sequence, as many as
        are declared or as there are queries for each position that came in; of several axes the
        last one is theirs, as nearly everybody has it.

        Args:
            module: That attends.
            tensor: Its query, or its weights.
            size: Length of the last axis of its query or value.
        """
        leading, length = tuple(tensor.shape[:-2]), tensor.shape[-2]
        if not leading:
            return cls((), ())
        split, last = tuple((axis,) for axis in leading), len(leading) - 1
        declared = declared_heads(module)
        if declared == {1} and leading[-1] > 1:
            return cls(split, ())
        if len(leading) == 1:
            return _of_one_axis(leading[0], HeadCount.of(module, leading, length, size))
        found = [axis for axis, count in enumerate(leading) if count in declared]
        if len(leading) > 2:
            if not found and leading[-1] * leading[-2] in declared:
                return cls(split, (last - 1, last))
            found = [axis for axis in found if axis] or found  # the batch leads, as a rule
        told = found == [last] and leading.count(leading[last]) == 1
        if told or leading == (1, 1):
            return cls(split, (last,))
        count = HeadCount.of(module, leading, length, size)
        counted = count.counted if count.whole else None
        alike = [axis for axis, held in enumerate(leading) if held == counted]
        axis = alike[0] if len(alike) == 1 else found[0] if len(found) == 1 else last
        return cls(split, (axis,), told=False, possible=_possible(count))

    @classmethod
    def of_groups(cls, module: nn.Module, leading: Sequence[int], groups: Sequence[int]) -> Layout:
        """Find the heads where several of the query share a key, in axes of their own.

        Args:
            module: That attends.
            leading: Lengths of the axes before the queries.
            groups: Numbers of those that keys lack.
        """
        first, declared = max(1, min(groups) - 1), declared_heads(module)
        heads = tuple(range(first, len(leading)))
        count = math.prod(leading[first:])
        told = len(leading) == 2 and groups[0] == 1 and (not declared or count in declared)
        split = tuple((axis,) for axis in leading)
        return cls(split, heads, told=told, possible=frozenset(declared))

    @classmethod
    def of_one_head(cls, leading: Sequence[int]) -> Layout:
        """Read all axes before the queries as sequences."""
        return cls(tuple((axis,) for axis in leading), ())

    @property
    def leading(self) -> tuple[int, ...]:
        """Lengths of the axes before the queries."""
        return tuple(math.prod(parts) for parts in self.split)

    def allows(self, n_heads: int) -> bool:
        """Whether there may be so many heads."""
        return not self.possible or n_heads in self.possible

    @property
    def plain(self) -> bool:
        """Whether tensors of four dimensions stay as they are."""
        return len(self.split) == 2 and self.heads == (1,) and not self.folded

    @property
    def folded(self) -> bool:
        """Whether sequences and heads lie in one axis."""
        return any(len(parts) > 1 for parts in self.split)

    @property
    def n_heads(self) -> int:
        """Number of heads of the query."""
        parts = [part for axis in self.split for part in axis]
        return math.prod(parts[number] for number in self.heads)

    def apply(self, tensor: Tensor) -> Tensor:
        """Turn ``(..., length, size)`` into ``(batch, head, length, size)``."""
        if tensor.ndim == 2:
            return tensor[None, None]
        if self.plain and tensor.ndim == 4:
            return tensor
        sizes: list[int] = []
        for held, parts in zip(tensor.shape, self.split, strict=False):
            sizes += self._parts(held, parts, len(sizes))
        count = len(sizes)
        batch = [part for part in range(count) if part not in self.heads]
        whole = tensor.reshape(*sizes, *tensor.shape[-2:])
        whole = whole.permute(*batch, *self.heads, count, count + 1)
        n_batch, n_heads = (math.prod(sizes[p] for p in parts) for parts in (batch, self.heads))
        return whole.reshape(n_batch, n_heads, *tensor.shape[-2:])

    def _parts(self, held: int, parts: tuple[int, ...], first: int) -> list[int]:
        """Lengths of the parts of an axis; key and value may have fewer heads than the query."""
        whole = math.prod(parts)
        if held == whole or len(parts) == 1:
            return [held] if len(parts) == 1 else list(parts)
        return [
            part * held // whole if first + number in self.heads else part
            for number, part in enumerate(parts)
        ]


def _of_one_axis(held: int, count: HeadCount) -> Layout:
    """Read an axis that may hold sequences and heads."""
    heads, counted = count.in_one_axis(held), count.counted if count.whole else None
    possible = _possible(count)
    if held == 1 or (heads == held == counted and count.batch == 1):
        return Layout(((held,),), (0,))
    if heads in (1, held):
        return Layout(((held,),), (0,) if heads > 1 else (), told=False, possible=possible)
    return Layout(((held // heads, heads),), (1,), told=False, possible=possible)


def _possible(count: HeadCount) -> frozenset[int]:
    if count.whole and count.counted is not None:
        return frozenset({count.counted})
    return count.declared
