"""`Spans`: which stretch of rows and keys each sequence has, so that lines know where they meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from attncheck.patterns.reading import counted, numbers, require_parts
from attncheck.patterns.sums import Array

__all__ = ["Spans"]

MOST: Final = 2**53
"""Positions beyond this are none."""


@dataclass(frozen=True, eq=False)
class Spans:
    """How many sequences have which rows and keys, counted from the first visible key.

    A column and a diagonal meet in one cell of a sequence, if it has the row: sums over rows alone
    do not tell how often that happens among sequences of several lengths.

    Attributes:
        bounds: First usable row, end of the rows, end of the keys: ``(span, 3)``, sorted, each
            once.
        count: Number of sequences, ``(head, span)``.
    """

    bounds: NDArray[np.int64]
    count: Array

    @classmethod
    def of(cls, usable: Tensor, visible: Tensor, positions: Tensor, first: Tensor) -> Spans:
        """Read the spans of a batch.

        Args:
            usable: Rows that count, bool ``(batch, head, query)``.
            visible: bool ``(batch or 1, head or 1, query, key)``.
            positions: Key position of each query, ``(query,)``.
            first: First visible key, ``(batch or 1, head or 1)``.
        """
        last = visible.shape[-1] - visible.any(-2).byte().flip(-1).argmax(-1)
        return Spans.within(usable, positions, first, last)

    @staticmethod
    def within(usable: Tensor, positions: Tensor, first: Tensor, last: Tensor) -> Spans:
        """Read the spans of a batch whose keys are visible from ``first`` to before ``last``."""
        numbers = usable.byte()
        begin = positions[numbers.argmax(-1)] - first
        end = positions[usable.shape[-1] - 1 - numbers.flip(-1).argmax(-1)] + 1 - first
        keys = last - first
        has = usable.any(-1).cpu().numpy()
        bounds = np.stack([held.expand(has.shape).cpu().numpy() for held in (begin, end, keys)], -1)
        batch, heads = np.nonzero(has)
        count = np.zeros((has.shape[1], len(batch)))
        count[heads, np.arange(len(batch))] = 1
        return _each_once(bounds[batch, heads], count)

    @property
    def sequences(self) -> Array:
        """Number of sequences, ``(head,)``."""
        return np.asarray(self.count.sum(1))

    @property
    def reach(self) -> tuple[int, int, int]:
        """How far queries lie before a key and how far from the first on, and how many keys are."""
        if not len(self.bounds):
            return 0, 0, 0
        begin, end, keys = self.bounds.T
        return max(0, int((keys - 1 - begin).max())), int(end.max()), int(keys.max())

    def merge(self, other: Spans) -> Spans:
        """Add the spans of the same heads from other sequences."""
        return _each_once(
            np.concatenate([self.bounds, other.bounds]),
            np.concatenate([self.count, other.count], axis=1),
        )

    def times(self, number: int) -> Spans:
        """Return the spans of so many copies of each sequence."""
        return Spans(self.bounds, self.count * number)

    def select(self, heads: list[int]) -> Spans:
        """Return the spans of some heads."""
        return _each_once(self.bounds, self.count[heads])

    def on_diagonals(self, column: NDArray[np.int64], zero: int, size: int) -> Array:
        """How often a column of each head meets each diagonal: ``(head, offset)``.

        Args:
            column: Position of the column, ``(head,)``.
            zero: Place of offset 0 among the diagonals.
            size: Number of diagonals.
        """
        begin, end, keys = (held[None] for held in self.bounds.T)
        there = np.where(column[:, None] < keys, self.count, 0)
        change = np.zeros((len(column), size + 1))
        heads = np.arange(len(column))[:, None]
        for bound, sign in ((begin, 1), (end, -1)):
            place = np.clip(bound - column[:, None] + zero, 0, size)
            np.add.at(change, (heads, place), sign * there)
        return np.asarray(np.cumsum(change, axis=1)[:, :-1])

    def on_columns(self, profile: Array, zero: int, width: int) -> Array:
        """Sum of a profile over the diagonals that meet each column: ``(head, column)``."""
        sums = np.pad(np.cumsum(profile, axis=1), ((0, 0), (1, 0)))
        columns, found = np.arange(width), np.zeros((len(profile), width))
        for (begin, end, keys), count in zip(self.bounds, self.count.T, strict=True):
            low = np.clip(begin - columns + zero, 0, profile.shape[1])
            high = np.clip(end - columns + zero, 0, profile.shape[1])
            found += count[:, None] * np.where(columns < keys, sums[:, high] - sums[:, low], 0)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the spans as lists."""
        return {"bounds": self.bounds.tolist(), "count": self.count.tolist()}

    @classmethod
    def from_dict(cls, held: Mapping[str, Any], heads: int) -> Spans:
        """Read what `to_dict` returned.

        Args:
            held: Lists of numbers.
            heads: Of how many heads they are.

        Raises:
            ValueError: It is damaged.
        """
        held = require_parts(held, ("bounds", "count"), "spans")
        length = len(held["bounds"]) if isinstance(held["bounds"], list) else 0
        bounds = numbers(held["bounds"], (length, 3), "bounds of spans")
        begin, end, keys = bounds.T
        if not ((bounds == bounds.round()) & (bounds < MOST)).all() or not (
            ((begin <= end) & (end >= 1) & (keys >= 1) & (begin > -MOST)).all()
        ):
            raise ValueError("held: bounds of spans are no stretches of rows and keys")
        count = numbers(held["count"], (heads, length), "count of spans")
        return cls(bounds.astype(np.int64), counted(count, "count of spans"))

    @staticmethod
    def join(parts: Sequence[Spans]) -> Spans:
        """Put the spans of different heads side by side."""
        sizes = np.cumsum([0, *(len(part.bounds) for part in parts)])
        count = [
            np.pad(part.count, ((0, 0), (start, int(sizes[-1]) - start - len(part.bounds))))
            for part, start in zip(parts, sizes.tolist(), strict=False)
        ]
        return _each_once(np.concatenate([p.bounds for p in parts]), np.concatenate(count))


def _each_once(bounds: NDArray[np.int64], count: Array) -> Spans:
    """Add what has the same bounds; leave out what no head has."""
    there = count.any(axis=0)
    kept, which = np.unique(bounds[there], axis=0, return_inverse=True)
    total = np.zeros((len(count), len(kept)))
    np.add.at(total.T, which.reshape(-1), count[:, there].T)
    return Spans(kept.reshape(-1, 3), total)
