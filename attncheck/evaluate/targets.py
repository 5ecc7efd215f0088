"""`Targets`: the keys that a row's token or segment selects, read from blocks of weights.

Earlier places of a token are found by sorting, not by comparing all tokens with all: what a row
selects is looked up in the block weight by weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from attncheck.evaluate.reach import Reach
from attncheck.patterns.grid import Marks

__all__ = ["Targets"]

Found = tuple[Tensor, Tensor]
"""Weight on the targets of each row, and number of its visible ones, ``(batch, head, query)``."""


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

    def read(self, weights: Tensor, rows: slice, keys: slice) -> dict[str, Found]:
        """Read a block of weights ``(batch, head, query, key)``; by pattern."""
        found: dict[str, Found] = {}
        if "induction" in self.names:
            found["duplicate_token"], found["induction"] = self._earlier(weights, rows, keys)
        if "delimiter" in self.names:
            assert self.marks.delimiters is not None
            marks = self.marks.delimiters[:, keys, None].to(weights.dtype)
            held, count = self._marked(weights, marks, rows, keys)
            found["delimiter"] = held[..., 0], count[..., 0]
        if "block" in self.names:
            assert self.marks.segments is not None
            segment = self.marks.segments[:, self.reach.positions[rows].clamp(min=0)]
            kinds, index = torch.unique(segment, return_inverse=True)
            marks = (self.marks.segments[:, keys, None] == kinds).to(weights.dtype)
            own = index[:, None, :, None]
            held, count = self._marked(weights, marks, rows, keys)
            found["block"] = _pick(held, own), _pick(count, own)
        return found

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

    def _marked(
        self, weights: Tensor, marks: Tensor, rows: slice, keys: slice
    ) -> tuple[Tensor, Tensor]:
        """Sum weights and count visible keys over marked keys.

        Args:
            weights: ``(batch, head, query, key)``.
            marks: 1 or 0, ``(batch or 1, key, mark)``.
            rows: Which queries.
            keys: Which keys.
        """
        batch, heads, n_query, n_key = weights.shape
        if len(marks) == 1 and marks.shape[-1] == 1:
            held = torch.mv(weights.view(-1, n_key), marks.view(-1))
        else:
            per_sequence = weights.view(batch, -1, n_key)
            held = torch.bmm(per_sequence, marks.expand(batch, -1, -1))
        held = held.view(batch, heads, n_query, -1)
        if self.reach.mask is not None:
            return held, self.reach.visible(rows, keys).to(marks.dtype) @ marks[:, None]
        below = F.pad(marks.cumsum(1), (0, 0, 1, 0))
        low, high = (
            (side[..., rows] - keys.start).clamp(0, n_key)
            for side in (self.reach.low, self.reach.high)
        )
        sequence = torch.arange(max(len(low), len(below)), device=low.device) % len(below)
        at = sequence[:, None, None]
        return held, below[at, high] - below[at, low]

    def _earlier(self, weights: Tensor, rows: slice, keys: slice) -> tuple[Found, Found]:
        """Read earlier places of each row's token, and the places behind those."""
        found = []
        several = len(self._sorted[0]) > 1
        for back in (0, 1):
            mass = torch.zeros_like(weights[..., 0])
            count = torch.zeros_like(mass)
            for element, (row, key) in enumerate(self._pairs(rows)):
                own = slice(element, element + 1) if several else slice(None)
                key = key + back
                there = (key >= keys.start) & (key < keys.stop)
                there &= key < self.reach.positions[rows][row]
                row, key = row[there], key[there]
                at = row * weights.shape[-1] + key - keys.start
                mass[own] = mass[own].index_add_(2, row, weights[own].flatten(2)[..., at])
                seen = self._sees(own, rows, row, key).to(weights.dtype)
                count[own] = count[own].index_add_(2, row, seen.expand(*mass[own].shape[:2], -1))
            found.append((mass, count))
        return found[0], found[1]

    def _sees(self, batch: slice, rows: slice, row: Tensor, key: Tensor) -> Tensor:
        """Whether rows see keys, point by point: bool ``(batch or 1, head or 1, point)``."""
        reach = self.reach.part(batch, slice(None))
        row = row + rows.start
        seen = (key >= reach.low[..., row]) & (key < reach.high[..., row])
        if reach.mask is not None:
            seen = seen & reach.mask[:, :, row if reach.mask.shape[2] > 1 else row * 0, key]
        return seen

    def _pairs(self, rows: slice) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each sequence's pairs of a row and an earlier place of its token."""
        place = self.reach.positions[rows]
        own = place.clamp(min=0)
        number = torch.arange(len(place), device=place.device)
        for order, begin, rank in zip(*self._sorted, strict=True):
            many = (rank[own] - begin[own]).masked_fill_(place < 0, 0)
            row = number.repeat_interleave(many)
            within = torch.arange(len(row), device=place.device) - (many.cumsum(0) - many)[row]
            yield row, order[begin[own][row] + within]

    @cached_property
    def _sorted(self) -> tuple[Tensor, Tensor, Tensor]:
        """Places sorted by token; where the run of each place's token begins; its place there."""
        assert self.marks.tokens is not None
        tokens = self.marks.tokens.contiguous()
        order = tokens.argsort(dim=-1, stable=True)
        place = torch.arange(tokens.shape[-1], device=tokens.device).expand(tokens.shape)
        rank = torch.empty_like(order).scatter_(-1, order, place)
        return order, torch.searchsorted(tokens.gather(-1, order), tokens), rank


def _pick(held: Tensor, index: Tensor) -> Tensor:
    """Pick a mark for each row of ``(batch or 1, head or 1, query, mark)``."""
    batch = max(len(held), len(index))
    held = held.expand(batch, -1, -1, -1)
    return held.gather(-1, index.expand(batch, held.shape[1], -1, -1))[..., 0]
