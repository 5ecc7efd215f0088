"""Cuts found on a coarse grid, moved to the position that gains most: all evaluators do it alike.

Around a cut only the keys and the rows near it change sides, so that what a move gains is told by
a few sums along them and by the square where they cross: nothing of the matrix has to be held.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from attncheck.patterns import thresholds

__all__ = ["Moved", "Read", "move_cuts"]

CHUNK = 1024
"""Rows or keys that are read at a time."""

TIE = 1e-4
"""Moves whose gains differ by less than this share of the best are equal but for rounding."""


class Read(Protocol):
    """Reads a part of a head."""

    def __call__(self, rows: slice, keys: slice) -> Tensor:
        """Return ``(quantity, row, key)``, float64: first the weight above even attention.

        Args:
            rows: Which queries.
            keys: Which keys.
        """
        ...


@dataclass(frozen=True, eq=False)
class Moved:
    """Cuts of one head, and what moving them added inside its segments.

    Attributes:
        cuts: Positions at which segments begin, but the first.
        added: By quantity that was read.
    """

    cuts: tuple[int, ...]
    added: Tensor


def move_cuts(
    cuts: Sequence[int], n_query: int, n_key: int, step: int, read: Read, quantities: int
) -> Moved:
    """Move each cut by less than a step to where it gains most, from the first to the last.

    Args:
        cuts: Positions at which segments begin, ascending, without 0.
        n_query: Number of queries, the last positions of the keys.
        n_key: Number of keys.
        step: Of the grid on which they were found.
        read: Reads a part of the head.
        quantities: How many it gives.
    """
    sheet = _Sheet(n_query, n_key, read)
    added = torch.zeros(quantities, dtype=torch.float64)
    moved: list[int] = []
    for number, place in enumerate(cuts):
        start = moved[-1] if moved else 0
        end = cuts[number + 1] if number + 1 < len(cuts) else n_key
        low = min(place, max(start + thresholds.MIN_SEGMENT, place - step + 1))
        high = max(place, min(end - thresholds.MIN_SEGMENT, place + step - 1))
        inside = sheet.inside(start, low, high, end)
        gain = inside[0]
        best, least = gain.max(), gain.min()
        chosen = int((gain >= best - TIE * (best - least)).byte().argmax())
        added += (inside[:, chosen] - inside[:, place - low]).to(added)
        moved.append(low + chosen)
    return Moved(tuple(moved), added)


@dataclass(frozen=True, eq=False)
class _Sheet:
    """One head by positions; those before the first query have no row."""

    n_query: int
    n_key: int
    read: Read

    def inside(self, start: int, low: int, high: int, end: int) -> Tensor:
        """Sum what lies in one of two segments, for each cut between them: ``(quantity, cut)``.

        Cells that lie inside for every cut are left out.

        Args:
            start: Where the first segment begins.
            low: First position of a cut.
            high: Last one.
            end: Where the second segment ends.
        """
        window = low, high
        rows_before = self._sum(window, (start, low), -1)
        rows_behind = self._sum(window, (high, end), -1)
        keys_before = self._sum((start, low), window, -2)
        keys_behind = self._sum((high, end), window, -2)
        square = self._square(low, high)
        corner = F.pad(square.cumsum(-1).cumsum(-2), (1, 0, 1, 0))
        place = torch.arange(high - low + 1, device=square.device)
        upper, whole = corner[:, place, place], corner[:, -1:, -1]
        lower = whole - corner[:, place, -1] - corner[:, -1, place] + upper
        before = F.pad((rows_before + keys_before).cumsum(-1), (1, 0))
        behind = F.pad((rows_behind + keys_behind).cumsum(-1), (1, 0))
        return before + behind[:, -1:] - behind + upper + lower

    def _square(self, low: int, high: int) -> Tensor:
        held = self.read(self._rows(low, high), slice(low, high))
        return F.pad(held, (0, 0, high - low - held.shape[-2], 0))

    def _sum(self, rows: tuple[int, int], keys: tuple[int, int], dim: int) -> Tensor:
        """Sum a part over its rows, -2, or its keys, -1; rows that are none give 0."""
        total: Tensor | None = None
        long, window = (keys, rows) if dim == -1 else (rows, keys)
        for begin, stop in _chunks(*long):
            part = (rows, (begin, stop)) if dim == -1 else ((begin, stop), keys)
            summed = self.read(self._rows(*part[0]), slice(*part[1])).sum(dim)
            total = summed if total is None else total + summed
        size = window[1] - window[0]
        if total is None:
            return self.read(slice(0, 0), slice(0, 0)).new_zeros(1, size)
        return F.pad(total, (size - total.shape[-1], 0))

    def _rows(self, begin: int, stop: int) -> slice:
        shift = self.n_key - self.n_query
        return slice(max(0, begin - shift), max(0, stop - shift))


def _chunks(begin: int, stop: int) -> Iterable[tuple[int, int]]:
    for first in range(begin, stop, CHUNK):
        yield first, min(first + CHUNK, stop)
