"""`Chances`: what chance says of rows and lines, which follows from what the rows see alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from torch import Tensor

from attncheck.evaluate.reach import Reach
from attncheck.patterns.spans import Spans
from attncheck.patterns.sums import Array, total

__all__ = ["Chances", "Counted", "chances_of"]


@dataclass(frozen=True, eq=False)
class Counted:
    """What chance says of each line, be it columns or diagonals.

    Attributes:
        rows: Usable rows that see it, ``(batch or 1, head or 1, line)``.
        chance: Mass that even attention would have there, of the same shape.
        by_head: Chance and rows, summed over sequences, ``(head, line)``; columns are counted from
            the first visible key of each sequence.
    """

    rows: Tensor
    chance: Tensor
    by_head: tuple[Array, Array]


@dataclass(frozen=True, eq=False)
class Chances:
    """What even attention would do in the rows that count.

    Attributes:
        rows: 1 for rows that count, else 0: float64 ``(batch or 1, head or 1, query)``.
        inverse: Weight of a visible key in an even row, of the same kind.
        even: The same in rows that count, else 0.
        highest: Entropy of an even row, in nats, of the same kind.
        sums: Sums by head, ``(head,)``, over rows that count: of 1, of `inverse`, of `highest`.
        columns: By key.
        diagonals: By distance, as `attncheck.patterns.diagonals.by_offset` lays it; None where
            distance means nothing.
        spans: Which stretch of rows and keys each sequence has.
    """

    rows: Tensor
    inverse: Tensor
    even: Tensor
    highest: Tensor
    sums: tuple[Array, Array, Array]
    columns: Counted
    diagonals: Counted | None
    spans: Spans

    @classmethod
    def of(cls, reach: Reach, usable: Tensor, *, positional: bool) -> Chances:
        """Count; sequences and heads that see the same are counted once."""
        heads, times = usable.shape[1], 1
        if reach.same_for_all and bool((usable == usable[:1]).all()):
            usable, times = usable[:1], len(usable)
        alike = bool((usable == usable[:, :1]).all())
        rows = (usable[:, :1] if alike else usable).double()
        seen = reach.seen.clamp(min=1).double()
        inverse, highest = 1 / seen, seen.log()
        even = rows * inverse
        each, share, most = (
            np.broadcast_to(times * total(part), heads) for part in (rows, even, rows * highest)
        )
        by_key = reach.by_key(rows), reach.by_key(even)
        diagonals = None
        if positional:
            by_offset = reach.by_offset(rows), reach.by_offset(even)
            diagonals = _counted(by_offset, by_offset, heads, times)
        end = reach.n_key - reach.seen_keys.byte().flip(-1).argmax(-1)
        return cls(
            rows=rows,
            inverse=inverse,
            even=even,
            highest=highest,
            sums=(each, share, most),
            columns=_counted(by_key, tuple(map(reach.from_first, by_key)), heads, times),
            diagonals=diagonals,
            spans=Spans.within(usable, reach.positions, reach.first, end).times(times),
        )


def chances_of(reach: Reach, usable: Tensor, *, positional: bool) -> Chances:
    """Return the chances of rows; where all count that see two keys, each reach keeps them.

    Args:
        reach: What the rows see.
        usable: Rows that count, bool ``(batch, head, query)``.
        positional: Whether distance means anything.
    """
    if not bool((usable == (reach.seen >= 2)).all()):
        return Chances.of(reach, usable, positional=positional)
    key = (usable.shape, positional)
    if key not in reach.chances:
        reach.chances[key] = Chances.of(reach, usable, positional=positional)
    return reach.chances[key]


Pair: TypeAlias = tuple[Tensor, ...]


def _counted(lines: Pair, from_first: Pair, heads: int, times: int) -> Counted:
    rows, chance = lines
    every, even = (np.asarray(times * part.sum(0).cpu().numpy()) for part in from_first)
    shape = (heads, every.shape[-1])
    return Counted(rows, chance, (np.broadcast_to(even, shape), np.broadcast_to(every, shape)))
