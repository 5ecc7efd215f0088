"""`Tally`: what one walk over the blocks of a layer leaves behind, linear in the length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Protocol, TypeAlias

import torch
from torch import Tensor

from attncheck.evaluate.chances import Chances, chances_of
from attncheck.evaluate.reach import Reach
from attncheck.evaluate.targets import Targets
from attncheck.patterns.cells import CellGrid
from attncheck.patterns.diagonals import by_offset

__all__ = ["Source", "Tally"]

Cells: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]

ROWS: Final = (
    *("peak", "top", "mass", "inner", "norm", "first", "far", "later", "overlap", "share"),
)


class Source(Protocol):
    """Where single weights can be had again."""

    @property
    def sinks(self) -> Any:
        """None where no learned sink takes part of a row."""

    def weights_at(self, cells: Cells, rows: Mapping[str, Tensor]) -> Tensor:
        """Look up weights of visible keys, ``(point,)``.

        Args:
            cells: Batch, head, query and key of each.
            rows: Numbers of each row, as `Tally` has them.
        """

    def weights_in(
        self, place: tuple[int, int, slice, slice], rows: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the weights of a part of a head, ``(query, key)``; anything on hidden keys.

        Args:
            place: Batch, head, queries and keys.
            rows: Numbers of each row, as `Tally` has them.
        """

    def sink_mass(self, share: Tensor) -> Tensor:
        """Mass on learned sinks by row, from the share that is left to the keys."""


@dataclass(frozen=True, eq=False)
class Tally:
    """Numbers of each row, and sums by key, by distance and by cell, of some sequences.

    Attributes:
        source: Where single weights can be had again.
        targets: What tokens and segments select; what the rows see.
        valid: Rows that carry attention, bool ``(batch, head, query)``.
        usable: Those of them that see two keys or more; patterns are judged on these.
        first: First key that any query sees, ``(batch or 1, head or 1)``.
        names: Of what the table holds.
        table: Numbers of each row, ``(name, batch, head, query)``: the largest score (``peak``),
            the largest weight (``top``), the sum of the weights (``mass``), of weights times
            scores less the peak (``inner``), their ``norm``, the weight of the ``first`` key, the
            mean distance (``far``), the mass on ``later`` keys, the ``overlap`` with even
            attention, and for each pattern of tokens or segments the weight on its targets and,
            as ``"induction keys"``, the number of visible ones. Weights sum to 1 over the keys,
            but for ``overlap``; ``share`` is what a learned sink leaves to them, or, of weights
            that were given, the sum of the row.
        columns: Mass by key over usable rows, ``(batch, head, key)``, float64.
        offsets: Mass by distance over usable rows, farthest ahead last, float64; None if distance
            means nothing.
        cells: Mass by cell of a coarse grid over usable rows; None if distance means nothing.
        grid: The coarse grid.
        looped: Compiled loops made it, and may go on.
    """

    source: Source
    targets: Targets
    valid: Tensor
    usable: Tensor
    first: Tensor
    names: tuple[str, ...]
    table: Tensor
    columns: Tensor
    offsets: Tensor | None
    cells: Tensor | None
    grid: CellGrid
    looped: bool = False

    @classmethod
    def empty(
        cls, source: Source, targets: Targets, valid: Tensor, usable: Tensor, dtype: torch.dtype
    ) -> Tally:
        """Make room for a walk over weights of some dtype."""
        reach = targets.reach
        grid = CellGrid(reach.n_query, reach.n_key)

        def room(*size: int, of: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(*valid.shape[:2], *size, dtype=of, device=valid.device)

        names = (*ROWS, *targets.names, *(f"{name} keys" for name in targets.names))
        table = torch.zeros(len(names), *valid.shape, dtype=dtype, device=valid.device)
        for name in ("share", "top"):
            table[names.index(name)] = 1
        positional = targets.positional
        return cls(
            source,
            targets,
            valid,
            usable,
            first=reach.first,
            names=names,
            table=table,
            columns=room(reach.n_key),
            offsets=room(reach.n_key + reach.n_query - 1) if positional else None,
            cells=room(grid.n_rows, grid.n_keys, of=dtype) if positional else None,
            grid=grid,
        )

    @property
    def reach(self) -> Reach:
        """What the rows see."""
        return self.targets.reach

    @cached_property
    def rows(self) -> Mapping[str, Tensor]:
        """The table by name, each ``(batch, head, query)``."""
        return dict(zip(self.names, self.table.unbind(), strict=True))

    def place(self, name: str) -> int:
        """Where a name stands in the table; -1 where it does not."""
        return self.names.index(name) if name in self.names else -1

    def part(self, head: slice, rows: slice) -> dict[str, Tensor]:
        """Numbers of some rows of some heads, to be written."""
        parts = self.table[:, :, head, rows].unbind()
        return dict(zip(self.names, parts, strict=True))

    @cached_property
    def chances(self) -> Chances:
        """What chance says of the usable rows."""
        return chances_of(self.reach, self.usable, positional=self.offsets is not None)

    @cached_property
    def entropy(self) -> Tensor:
        """Entropy of each row over its keys, in nats, float64: ``log Z - sum_j a_j s_j``.

        Scores ``s`` count from the row's largest, so that ``Z`` is the inverse of the largest
        weight and nothing cancels that is large.
        """
        entropy = -self.rows["top"].double().log() - self.rows["inner"].double()
        return entropy.clamp_(min=0).minimum(self.chances.highest)

    def add_block(
        self, weights: Tensor, rows: slice, keys: slice, head: slice, *, ends: bool
    ) -> None:
        """Add the sums by key, distance and cell of a block of weights of usable rows.

        Args:
            weights: ``(batch, head, query, key)``, contiguous; 0 in rows that do not count.
            rows: Which queries.
            keys: Which keys.
            head: Which heads.
            ends: No weight lies beyond the diagonal that ends in the block's last corner.
        """
        columns = self.columns[:, head, keys]
        if self.cells is None or self.offsets is None:
            columns.add_(weights.sum(-2))
            return
        partial = self.grid.sum_rows(weights)
        columns.add_(partial[..., 0, :] if partial.shape[-2] == 1 else partial.sum(-2))
        row, key, found = self.grid.sum_keys(partial, rows, keys)
        self.cells[:, head, row, key].add_(found)
        # Place of the diagonal that starts in the block's first corner, nearest keys first.
        place = self.reach.n_query - 1 - rows.start + keys.start
        _add_diagonals(self.offsets[:, head], weights, place, ends=ends)

    @cached_property
    def by_offset(self) -> Tensor:
        """Mass by distance as `attncheck.patterns.diagonals.by_offset` lays it."""
        assert self.offsets is not None
        return self.offsets.flip(-1)


def _add_diagonals(offsets: Tensor, weights: Tensor, place: int, *, ends: bool) -> None:
    """Add the sums of the diagonals of a block, read in place."""
    n_query, n_key = weights.shape[-2:]
    if n_key <= n_query:
        found = by_offset(weights).sum(-2).flip(-1)
        offsets[..., place - n_query + 1 : place + n_key].add_(found)
        return
    inner = n_key - n_query + 1  # diagonals that cross every row
    flat = weights.flatten(-2)
    if ends and n_query > 1:
        # One element more than a row apart lie the elements of a diagonal; those before the
        # first key end up behind the last one of the row above, where nothing else is.
        skew = flat.view(-1, flat.shape[-1])[:, : (n_query - 1) * (n_key + 1)]
        skew = skew.view(len(skew), n_query - 1, n_key + 1)
        found = torch.bmm(skew.new_ones(len(skew), 1, n_query - 1), skew)
        found = found.view(*flat.shape[:-1], n_key + 1)
        found[..., :inner].add_(weights[..., -1, n_query - 1 :])
        offsets[..., place : place + inner].add_(found[..., :inner])
        offsets[..., place - n_query + 1 : place].add_(found[..., inner + 1 :])
        return
    strides = (*weights.stride()[:-2], n_key + 1, 1)
    skew = weights.as_strided((*weights.shape[:-1], inner), strides, weights.storage_offset())
    offsets[..., place : place + inner].add_(skew.sum(-2))
    left, right = weights[..., :n_query], weights[..., -n_query:]
    corners = by_offset(left.tril(-1) + right.triu(1)).sum(-2).flip(-1)
    offsets[..., place - n_query + 1 : place].add_(corners[..., : n_query - 1])
    offsets[..., place + inner : place + n_key].add_(corners[..., n_query:])
