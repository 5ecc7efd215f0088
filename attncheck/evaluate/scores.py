"""Scores of a block, and of chosen pairs, by the rules that attention backends share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import torch
from torch import Tensor

from attncheck.attention import QueryKey
from attncheck.attention.masks import HIDDEN_BELOW
from attncheck.evaluate.reach import Reach

__all__ = ["HIDDEN", "Hidden", "Scores", "hidden", "hide", "of_heads"]

HIDDEN: Final = -1e30
"""Score of a hidden key: finite, so that 0 times it is 0."""

Hidden: TypeAlias = tuple[slice, Tensor]
"""Keys of a block, counted from its first, and which of them are hidden from which rows."""

POINTS: Final = 1 << 13
"""Pairs of query and key whose scores are computed together."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Query and key of some sequences, ready to multiply.

    Attributes:
        query: ``(batch, head, query, size)``, as the layer has it.
        key: ``(batch * key-value head, key, size)``, float32 at least.
        group: Heads that share a key head here.
        factor: Factor on the scores.
        softcap: Bound of the scores, or None.
        sinks: Scores of learned sinks, ``(batch or 1, head or 1, query or 1)``, or None.
        added: Added to the scores, each ``(batch or 1, head or 1, query or 1, key)``.
    """

    query: Tensor
    key: Tensor
    group: int
    factor: float
    softcap: float | None
    added: tuple[Tensor, ...]
    sinks: Tensor | None

    @classmethod
    def of(cls, record: QueryKey, batch: slice) -> Scores:
        """Take some sequences of a layer."""
        sequences, _, _, n_key = record.shape
        query = record.query.expand(sequences, -1, -1, -1)[batch]
        shared = list(dict.fromkeys(record.key_heads))
        even = [one for one in shared for _ in range(query.shape[1] // len(shared))]
        if even != list(record.key_heads):
            shared = list(record.key_heads)
        chosen = slice(shared[0], shared[-1] + 1)
        first = record.key.expand(sequences, -1, -1, -1)[batch]
        key = (
            first[:, chosen]
            if shared == list(range(chosen.start, chosen.stop))
            else first[:, shared]
        )
        return cls(
            query,
            key.to(record.computed_in).reshape(-1, n_key, key.shape[-1]),
            query.shape[1] // len(shared),
            record.scale,
            record.softcap,
            tuple(of_sequences(held, batch) for held in added(record)),
            None if record.sinks is None else of_sequences(record.sinks, batch)[..., 0],
        )

    def parts(self, most: int) -> Iterator[slice]:
        """Yield heads to be computed together: whole groups where they fit, else part of one.

        Args:
            most: How many heads fit.
        """
        heads = self.query.shape[1]
        if most >= self.group:
            groups = heads // self.group
            step = -(-groups // -(-groups // (most // self.group))) * self.group
        else:
            step = max(size for size in range(1, max(1, most) + 1) if self.group % size == 0)
        for start in range(0, heads, step):
            yield slice(start, min(start + step, heads))

    def block(
        self, rows: slice, keys: slice, head: slice, valid: Tensor | None, out: Tensor
    ) -> Tensor:
        """Compute a block into the front of ``out``: ``(batch, head, query, key)``.

        Args:
            rows: Which queries.
            keys: Which keys.
            head: Which heads, as `parts` has them.
            valid: Rows that count, bool ``(batch, head, query)``; others get a score of 0,
                whatever they hold. None: all count.
            out: Flat memory to write to.
        """
        every = self if head.stop - head.start == self.query.shape[1] else self.of_heads(head)
        query = every.query[:, :, rows].to(self.key.dtype)
        if valid is not None:
            query = query.masked_fill(~valid[:, head, rows, None], 0)
        batch, heads, n_query, size = query.shape
        key, width = every.key[:, keys], keys.stop - keys.start
        query = query.reshape(len(key), -1, size)
        flat = out[: len(key) * query.shape[1] * width].view(len(key), query.shape[1], width)
        flat.baddbmm_(query, key.mT, beta=0, alpha=self.factor)
        scores = flat.view(batch, heads, n_query, width)
        self.change(scores, rows, keys, head)
        return scores

    @property
    def changes(self) -> bool:
        """Whether scores are more than products."""
        return self.softcap is not None or bool(self.added)

    def change(self, products: Tensor, rows: slice, keys: slice, head: slice) -> None:
        """Make scores of products, in place.

        Args:
            products: ``(batch, head, query, key)``.
            rows: Which queries.
            keys: Which keys.
            head: Which heads.
        """
        if self.softcap is not None:
            products.div_(self.softcap).tanh_().mul_(self.softcap)
        for bias in self.added:
            held = of_heads(bias, head)
            held = held if held.shape[2] == 1 else held[:, :, rows]
            products.add_(held[..., keys]).clamp_min_(HIDDEN)

    def weights_at(
        self, cells: tuple[Tensor, Tensor, Tensor, Tensor], rows: Mapping[str, Tensor]
    ) -> Tensor:
        """Weights of single visible keys, from their scores and the largest weight of their row."""
        at = cells[:3]
        weights = (self.points(cells) - rows["peak"][at]).exp() * rows["top"][at]
        return weights * rows["share"][at]

    def weights_in(
        self, place: tuple[int, int, slice, slice], rows: Mapping[str, Tensor]
    ) -> Tensor:
        """Weights of a part of a head, ``(query, key)``, as `weights_at` has them."""
        batch, head, queries, keys = place
        key = self.key[batch * (self.query.shape[1] // self.group) + head // self.group, keys]
        scores = (self.query[batch, head, queries].to(key.dtype) * self.factor) @ key.mT
        if self.softcap is not None:
            scores = (scores / self.softcap).tanh() * self.softcap
        for bias in self.added:
            own = bias[batch % len(bias), head % bias.shape[1]]
            own = own if len(own) == 1 else own[queries]
            scores = scores + own[:, keys]
        peak, top, share = (rows[n][batch, head, queries, None] for n in ("peak", "top", "share"))
        return (scores - peak).exp() * top * share

    def sink_mass(self, share: Tensor) -> Tensor:
        """Mass that learned sinks take."""
        return 1 - share

    def of_sequence(self, number: int) -> Scores:
        """Return the scores of one sequence; query and key are views."""
        own, shared = slice(number, number + 1), self.query.shape[1] // self.group
        return replace(
            self,
            query=self.query[own],
            key=self.key[number * shared : (number + 1) * shared],
            added=tuple(of_sequences(held, own) for held in self.added),
            sinks=None if self.sinks is None else of_sequences(self.sinks, own),
        )

    def of_heads(self, head: slice) -> Scores:
        """Return the scores of some heads, as `parts` has them.

        Args:
            head: Which heads.
        """
        first, last = head.start // self.group, -(-head.stop // self.group)
        held = self.key.view(len(self.query), -1, *self.key.shape[1:])
        query = self.query[:, head]
        return replace(
            self,
            query=query,
            key=held[:, first:last].flatten(0, 1),
            group=query.shape[1] // (last - first),
            added=tuple(of_heads(bias, head) for bias in self.added),
            sinks=None if self.sinks is None else of_heads(self.sinks, head),
        )

    def points(self, places: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        """Compute single scores, of visible keys.

        Args:
            places: Batch, head, query and key of each, ``(point,)``.
        """
        parts = [
            self._points(*part)
            for part in zip(*(torch.split(p, POINTS) for p in places), strict=True)
        ]
        return torch.cat(parts) if parts else self.key.new_zeros(0)

    def _points(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        shared = self.query.shape[1] // self.group
        rows = self.query[batch, head, query].to(self.key.dtype) * self.factor
        scores = (rows * self.key[batch * shared + head // self.group, key]).sum(-1)
        if self.softcap is not None:
            scores = (scores / self.softcap).tanh() * self.softcap
        for bias in self.added:
            at = zip(bias.shape, (batch, head, query, key), strict=True)
            scores = scores + bias[tuple(p if size > 1 else p * 0 for size, p in at)]
        return scores


def hidden(reach: Reach, rows: slice, keys: slice, inner: tuple[int, int]) -> Iterator[Hidden]:
    """Yield the stretches of a block in which keys are hidden.

    Args:
        reach: What the rows see.
        rows: Which queries.
        keys: Which keys.
        inner: From where to where every row sees all keys, unless there is a mask.
    """
    begin, end = inner
    if begin >= end or reach.mask is not None:
        begin = end = keys.stop
    for edge in (slice(keys.start, begin), slice(end, keys.stop)):
        if edge.stop > edge.start:
            place = slice(edge.start - keys.start, edge.stop - keys.start)
            yield place, ~reach.visible(rows, edge)


def hide(scores: Tensor, stretches: Iterable[Hidden], head: slice) -> None:
    """Give hidden keys of a block a score that makes no weight.

    Args:
        scores: ``(batch, head, query, key)``, changed in place.
        stretches: What `hidden` found.
        head: Which heads these are.
    """
    for place, held in stretches:
        scores[..., place].masked_fill_(of_heads(held, head), HIDDEN)


def added(record: QueryKey) -> Iterator[Tensor]:
    """Yield what is added to scores: the bias, and a mask that does more than hide."""
    if record.bias is not None:
        yield record.bias
    mask = record.mask
    if mask is None or mask.dtype == torch.bool:
        return
    if bool(((mask != 0) & (mask > HIDDEN_BELOW)).any()):
        yield mask


def of_sequences(held: Tensor, batch: slice) -> Tensor:
    """Take some sequences, unless all share one."""
    return held if held.shape[0] == 1 else held[batch]


def of_heads(held: Tensor, head: slice) -> Tensor:
    """Take some heads, unless all share one."""
    return held if held.shape[1] == 1 else held[:, head]
