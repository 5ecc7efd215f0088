"""`Earlier`: the earlier places of each row's token, found by sorting, many rows at a time."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from attncheck.evaluate.reach import Reach

__all__ = ["Earlier"]

PAIRS: Final = 1 << 16
"""Pairs of a row and an earlier place that are held together, unless one call asks for more."""


class Earlier:
    """Pairs of a row and a key that lies at, or right behind, an earlier place of its token.

    Args:
        tokens: Tokens of one sequence, ``(key,)``.
        reach: What its rows see; of several sequences where they share their tokens.
    """

    def __init__(self, tokens: Tensor, reach: Reach) -> None:
        self._reach = reach
        self._order = tokens.argsort(stable=True)
        rank = torch.empty_like(self._order)
        rank[self._order] = torch.arange(len(tokens), device=tokens.device)
        self._begin = torch.searchsorted(tokens[self._order], tokens)
        place = reach.positions.clamp(min=0)
        many = (rank - self._begin)[place].masked_fill_(reach.positions < 0, 0)
        self._before = torch.cat([many.new_zeros(1), many.cumsum(0)])
        self._before_here = self._before.tolist()
        sees = reach.seen > 0
        self._low = torch.where(sees, reach.low, reach.n_key).amin((0, 1))
        self._high = torch.where(sees, reach.high, 0).amax((0, 1))
        self._held = slice(0, 0)
        self._found: list[tuple[Tensor, Tensor, list[int], Tensor]] = []

    def pairs(self, rows: slice, back: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows, counted from the first, and keys; and how many of them each row sees.

        Args:
            rows: Which queries, asked for in order and in steps of one size.
            back: 0 for the earlier places, 1 for the places behind them.

        Returns:
            Row and key of each pair that any head sees, ``(pair,)``; for each row the number of
            visible ones, ``(batch or 1, head or 1, query)``.
        """
        if rows.start < self._held.start or rows.stop > self._held.stop:
            self._hold(rows)
        row, key, starts, count = self._found[back]
        begin, end = (at - self._held.start for at in (rows.start, rows.stop))
        pairs = slice(starts[begin], starts[end])
        return row[pairs] - begin, key[pairs], count[..., begin:end]

    def _hold(self, rows: slice) -> None:
        """Find the pairs of some rows, and of as many after them as fit."""
        size, stop, n_query = rows.stop - rows.start, rows.stop, self._reach.n_query
        before = self._before_here
        while stop < n_query and before[min(stop + size, n_query)] - before[rows.start] <= PAIRS:
            stop = min(stop + size, n_query)
        self._held = slice(rows.start, stop)
        many = self._before[rows.start : stop + 1].diff()
        row = torch.arange(rows.start, stop, device=many.device).repeat_interleave(many)
        place = self._reach.positions[row]
        within = torch.arange(len(row), device=row.device) - (
            self._before[row] - before[rows.start]
        )
        key = self._order[self._begin[place] + within]
        self._found = [self._visible(row, key + back, place) for back in (0, 1)]

    def _visible(
        self, row: Tensor, key: Tensor, place: Tensor
    ) -> tuple[Tensor, Tensor, list[int], Tensor]:
        """Keep the pairs before the row's own place that are visible anywhere, and count them."""
        there = (key < place) & (key >= self._low[row]) & (key < self._high[row])
        row, key = row[there], key[there]
        reach, start, size = self._reach, self._held.start, self._held.stop - self._held.start
        seen = (key >= reach.low[..., row]) & (key < reach.high[..., row])
        if reach.mask is not None:
            seen = seen & reach.mask[:, :, row if reach.mask.shape[2] > 1 else row * 0, key]
        row = row - start
        count = torch.zeros(*seen.shape[:2], size, device=row.device)
        count.scatter_add_(-1, row.expand(seen.shape), seen.to(count.dtype))
        every = torch.arange(size + 1, device=row.device)
        return row, key, torch.searchsorted(row, every).tolist(), count
