"""`Targets`: the keys that a row's token or segment selects, read from blocks of weights.

What a row selects by its token is looked up in the block weight by weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from attncheck.evaluate.earlier import Earlier
from attncheck.evaluate.reach import Reach
from attncheck.patterns.grid import Marks

__all__ = ["Picked", "Targets"]


@dataclass(frozen=True, eq=False)
class Picked:
    """What the rows of a block select among its keys; the same for all heads.

    Attributes:
        counts: Number of visible targets of each row, by pattern, ``(batch or 1, head or 1,
            query)``.
        points: Pattern, sequences, and row and place in the flat block of each target.
        marks: By pattern, 1 or 0 for keys and marks, ``(batch or 1, key, mark)``, and the mark of
            each row, ``(batch or 1, 1, query, 1)``, or None where there is one.
    """

    counts: dict[str, Tensor]
    points: list[tuple[str, slice, Tensor, Tensor]]
    marks: dict[str, tuple[Tensor, Tensor | None]]

    def read(self, weights: Tensor, rows: Mapping[str, Tensor]) -> None:
        """Sum the weights of each row's targets.

        Args:
            weights: ``(batch, head, query, key)``, contiguous.
            rows: Where to add them, by pattern, ``(batch, head, query)``.
        """
        for name, own, row, at in self.points:
            found = weights[own].flatten(2).index_select(2, at)
            rows[name][own].scatter_add_(2, row.expand(found.shape), found)
        for name, (marks, own_mark) in self.marks.items():
            held = _over_marks(weights, marks)
            held = held[..., 0] if own_mark is None else _pick(held, own_mark)
            rows[name].copy_(held)


@dataclass(frozen=True, eq=False)
class Targets:
    """What the rows of some sequences select.

    Attributes:
        marks: Tokens, segments and delimiters of these sequences.
        reach: What their rows see.
        positional: Whether query and key positions count the same tokens.
    """

    marks: Marks
    reach: Reach
    positional: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Patterns that are read."""
        marks = self.marks
        tokens = marks.tokens is not None and self.positional
        return (
            *(("duplicate_token", "induction") if tokens else ()),
            *(("delimiter",) if marks.delimiters is not None else ()),
            *(("block",) if marks.segments is not None and self.positional else ()),
        )

    @property
    def tokenwise(self) -> list[str]:
        """Those of them that select keys by their tokens."""
        return [name for name in self.names if name != "block"]

    def pick(self, rows: slice, keys: slice, dtype: torch.dtype) -> Picked:
        """Find what some rows select among some keys.

        Args:
            rows: Which queries.
            keys: Which keys.
            dtype: Of the weights to come.
        """
        marks, picked = self.marks, Picked({}, [], {})
        if "induction" in self.names:
            self._earlier(picked, rows, keys)
        if "delimiter" in self.names:
            assert marks.delimiters is not None
            chosen = marks.delimiters[:, keys, None].to(dtype)
            picked.marks["delimiter"] = chosen, None
            picked.counts["delimiter"] = self._count(chosen, rows, keys)[..., 0]
        if "block" in self.names:
            assert marks.segments is not None
            segment = marks.segments[:, self.reach.positions[rows].clamp(min=0)]
            kinds, index = torch.unique(segment, return_inverse=True)
            chosen = (marks.segments[:, keys, None] == kinds).to(dtype)
            own = index[:, None, :, None]
            picked.marks["block"] = chosen, own
            picked.counts["block"] = _pick(self._count(chosen, rows, keys), own)
        return picked

    def first_is_target(self, name: str, first: Tensor) -> Tensor:
        """Whether the first key is a target of each row: bool ``(batch, head or 1, query)``.

        Args:
            name: A pattern of tokens.
            first: First visible key, ``(batch or 1, head or 1)``.
        """
        if name == "delimiter":
            assert self.marks.delimiters is not None
            batch = max(len(first), len(self.marks.delimiters))
            marks = self.marks.delimiters.expand(batch, -1)
            return marks.gather(-1, first.expand(batch, -1))[..., None].expand(
                -1, -1, self.reach.n_query
            )
        assert self.marks.tokens is not None
        batch = max(len(first), len(self.marks.tokens))
        tokens, first = self.marks.tokens.expand(batch, -1), first.expand(batch, -1)
        place = self.reach.positions
        back = 1 if name == "induction" else 0
        same = tokens.gather(-1, (first - back).clamp(min=0))[..., None]
        own = tokens[:, None, place.clamp(min=0)]
        return (same == own) & (first >= back)[..., None] & (first[..., None] < place)

    def _count(self, marks: Tensor, rows: slice, keys: slice) -> Tensor:
        """Count visible keys over marked keys: ``(batch or 1, head or 1, query, mark)``.

        Args:
            marks: 1 or 0, ``(batch or 1, key, mark)``.
            rows: Which queries.
            keys: Which keys.
        """
        if self.reach.mask is not None:
            return self.reach.visible(rows, keys).to(marks.dtype) @ marks[:, None]
        below = F.pad(marks.cumsum(1), (0, 0, 1, 0))
        low, high = (
            (side[..., rows] - keys.start).clamp(0, marks.shape[1])
            for side in (self.reach.low, self.reach.high)
        )
        sequence = torch.arange(max(len(low), len(below)), device=low.device) % len(below)
        at = sequence[:, None, None]
        return below[at, high] - below[at, low]

    def _earlier(self, picked: Picked, rows: slice, keys: slice) -> None:
        """Find earlier places of each row's token, and the places behind those."""
        several = len(self._earlier_tokens) > 1
        width = keys.stop - keys.start
        for back, name in enumerate(("duplicate_token", "induction")):
            counts = []
            for element, earlier in enumerate(self._earlier_tokens):
                row, key, count = earlier.pairs(rows, back)
                counts.append(count)
                if len(row):
                    own = slice(element, element + 1) if several else slice(None)
                    at = (row * width).add_(key).sub_(keys.start)
                    picked.points.append((name, own, row, at))
            picked.counts[name] = torch.cat(counts) if several else counts[0]

    @cached_property
    def _earlier_tokens(self) -> list[Earlier]:
        """Of each sequence; of all if they share their tokens."""
        tokens = self.marks.tokens
        assert tokens is not None
        if len(tokens) == 1:
            return [Earlier(tokens[0], self.reach)]
        return [
            Earlier(own, self.reach.part(slice(element, element + 1)))
            for element, own in enumerate(tokens)
        ]


def _over_marks(weights: Tensor, marks: Tensor) -> Tensor:
    """Sum weights over marked keys: ``(batch, head, query, mark)``."""
    batch, heads, n_query, n_key = weights.shape
    if len(marks) == 1 and marks.shape[-1] == 1:
        held = torch.mv(weights.view(-1, n_key), marks.view(-1))
    else:
        held = torch.bmm(weights.view(batch, -1, n_key), marks.expand(batch, -1, -1))
    return held.view(batch, heads, n_query, -1)


def _pick(held: Tensor, index: Tensor) -> Tensor:
    """Pick a mark for each row of ``(batch or 1, head or 1, query, mark)``."""
    batch = max(len(held), len(index))
    held = held.expand(batch, -1, -1, -1)
    return held.gather(-1, index.expand(batch, held.shape[1], -1, -1))[..., 0]
