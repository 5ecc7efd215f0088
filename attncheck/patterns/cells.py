"""`CellGrid`: the coarse grid over queries and keys on which blocks of attention are searched."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["CELLS", "CellGrid"]

CELLS = 128
"""Steps of the grid on which long sequences are cut, up to twice as many."""


@dataclass(frozen=True)
class CellGrid:
    """Cells of ``step`` queries by ``step`` keys, aligned so that both end at the last position.

    Attributes:
        n_query: Number of queries, the last positions of the keys.
        n_key: Number of keys.

    Example:
        >>> grid = CellGrid(1000, 1000)
        >>> grid.step, grid.n_rows, grid.edges()[-2:].tolist()
        (4, 250, [996, 1000])
    """

    n_query: int
    n_key: int

    @property
    def step(self) -> int:
        """Side of a cell: a power of two."""
        step = 1
        while self.n_key // (2 * step) >= CELLS:
            step *= 2
        return step

    @property
    def lead(self) -> int:
        """Keys that the first cell lacks, so that cells of queries and of keys have one border."""
        return -(self.n_key - self.n_query) % self.step

    @property
    def n_rows(self) -> int:
        """Number of cells along the queries."""
        return -(-self.n_query // self.step)

    @property
    def n_keys(self) -> int:
        """Number of cells along the keys."""
        return -(-(self.n_key + self.lead) // self.step)

    @property
    def shift(self) -> int:
        """Cell of keys in which the first query stands."""
        return (self.n_key - self.n_query + self.lead) // self.step

    def edges(self, device: torch.device | None = None) -> Tensor:
        """Where cells of keys begin, and the end of the last: ``(n_keys + 1,)``."""
        places = torch.arange(self.n_keys + 1, device=device) * self.step - self.lead
        return places.clamp(0, self.n_key)

    def of_keys(self, keys: Tensor) -> Tensor:
        """Cells of some keys."""
        return (keys + self.lead) // self.step

    def sum_rows(self, held: Tensor) -> Tensor:
        """Add the rows of each cell: ``(..., query, key)`` to ``(..., cell, key)``."""
        n_query, step = held.shape[-2], min(self.step, held.shape[-2])
        if step == 1:
            return held
        whole = n_query - n_query % step
        summed = held[..., :whole, :].reshape(*held.shape[:-2], -1, step, held.shape[-1]).sum(-2)
        if whole == n_query:
            return summed
        return torch.cat([summed, held[..., whole:, :].sum(-2, keepdim=True)], dim=-2)

    def sum_keys(self, held: Tensor, rows: slice, keys: slice) -> tuple[slice, slice, Tensor]:
        """Add the keys of each cell; say which cells of rows and keys these are.

        Args:
            held: ``(..., cell, key)`` of what `sum_rows` made of some rows.
            rows: Those rows; they begin at the border of a cell, or are part of one.
            keys: Which keys ``held`` has.
        """
        begin = rows.start // self.step
        first = (keys.start + self.lead) // self.step
        last = -(-(keys.stop + self.lead) // self.step)
        place = slice(begin, begin + held.shape[-2]), slice(first, last)
        if self.step == 1:
            return *place, held
        before = keys.start + self.lead - first * self.step
        after = last * self.step - self.lead - keys.stop
        wide = F.pad(held, (before, after)) if before or after else held
        return *place, wide.view(*held.shape[:-1], -1, self.step).sum(-1)
