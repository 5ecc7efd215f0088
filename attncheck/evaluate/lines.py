"""Columns and diagonals of a tally: as evidence, and those that stand out alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attncheck.evaluate.chances import Chances, Counted
from attncheck.evaluate.reach import Reach
from attncheck.evaluate.tally import Tally
from attncheck.patterns.blocks import clear_columns, clear_diagonals
from attncheck.patterns.sums import Array, Lines

__all__ = ["ClearLines", "as_columns", "as_offsets", "clear_lines"]

VARIANCE: Final = torch.float32
"""What variances are held in, as they are stored: these sums are most of a profile's memory."""


def as_columns(mass: Tensor, counted: Counted, variance: Tensor, reach: Reach) -> Lines:
    """Return sums by key, counted from the first visible key of each sequence.

    Args:
        mass: Weight by key, ``(batch, head, key)``.
        counted: What chance says of the keys.
        variance: What shuffled rows would do to the mass, ``(batch, head, key)``.
        reach: What rows see.
    """
    mass, variance = reach.from_first(mass), reach.from_first(variance)
    return Lines(_by_head(mass), *counted.by_head, _by_head(variance, VARIANCE))


def as_offsets(
    mass: Tensor, counted: Counted, variance: Tensor, *, n_query: int, causal: bool
) -> Lines:
    """Return sums by distance between query and key; the arguments are those of `as_columns`."""
    start = n_query - 1 if causal else 0
    chance, rows = (held[:, start:] for held in counted.by_head)
    mass, variance = mass[..., start:], variance[..., start:]
    held = _by_head(mass), chance, rows, _by_head(variance, VARIANCE)
    return Lines(*held, zero=n_query - 1 - start)


def _by_head(held: Tensor, dtype: torch.dtype = torch.float64) -> Array:
    """Sum over sequences in float64, and round."""
    return np.asarray(held.sum(0, dtype=torch.float64).to(dtype).cpu().numpy())


@dataclass(frozen=True, eq=False)
class ClearLines:
    """Columns and diagonals that stand out alone.

    Attributes:
        columns: Which columns, bool ``(batch, head, key)``.
        offsets: Which diagonals, as `by_offset` lays them, bool ``(batch, head, offset)``.
        cells: Batch, head, query and key of the cells of usable rows on these lines, each once.
        weights: Weight of each of these cells, float64.
    """

    columns: Tensor
    offsets: Tensor
    cells: tuple[Tensor, Tensor, Tensor, Tensor]
    weights: Tensor


def clear_lines(tally: Tally, chances: Chances) -> ClearLines:
    """Find the lines, and look their weights up."""
    assert chances.diagonals is not None
    usable = tally.usable
    rows = chances.rows.sum(-1, keepdim=True)
    picked = clear_columns(tally.columns, chances.columns.chance, rows, tally.first)
    n_query, positions = tally.reach.n_query, tally.reach.positions
    start = 0 if tally.reach.ahead else n_query - 1  # nothing lies on diagonals that no row sees
    diagonals = (held[..., start:] for held in (tally.by_offset, chances.diagonals.rows))
    chosen = F.pad(clear_diagonals(*diagonals), (start, 0))
    every = torch.arange(n_query, device=positions.device)
    batch, head, key = picked.nonzero(as_tuple=True)
    on_columns = (batch, head, key[:, None].expand(-1, n_query))
    batch, head, place = chosen.nonzero(as_tuple=True)
    on_diagonals = (batch, head, positions - (place - (n_query - 1))[:, None])
    parts = []
    for number, (batch, head, key) in enumerate((on_columns, on_diagonals)):
        batch, head = batch[:, None].expand_as(key), head[:, None].expand_as(key)
        there = (key >= 0) & (key < tally.reach.n_key)
        points = (batch[there], head[there], every.expand_as(key)[there], key[there])
        kept = usable[points[:3]] & _visible(tally, points)
        if number:
            kept &= ~picked[points[0], points[1], points[3]]
        parts.append([held[kept] for held in points])
    batch, head, query, key = (torch.cat(held) for held in zip(*parts, strict=True))
    cells = (batch, head, query, key)
    return ClearLines(picked, chosen, cells, tally.source.weights_at(cells, tally.rows).double())


def _visible(tally: Tally, points: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Whether rows see keys, point by point."""
    batch, head, query, key = points
    reach = tally.reach

    def at(held: Tensor, *last: Tensor) -> Tensor:
        own = (batch if held.shape[0] > 1 else batch * 0, head if held.shape[1] > 1 else head * 0)
        return held[(*own, *last)]

    seen = (key >= at(reach.low, query)) & (key < at(reach.high, query))
    if reach.mask is not None:
        seen &= at(reach.mask, query if reach.mask.shape[2] > 1 else query * 0, key)
    return seen
