"""`collect_evidence`: one pass over given weights, vectorised over batch and heads."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import reduce
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attncheck.attention import LayerAttention
from attncheck.metrics import row_dot, row_log_dot
from attncheck.patterns.blocks import measure_blocks
from attncheck.patterns.catalogue import PATTERNS
from attncheck.patterns.diagonals import by_offset, sum_diagonals
from attncheck.patterns.evidence import PatternEvidence, join_heads
from attncheck.patterns.grid import Grid, make_grid
from attncheck.patterns.spans import Spans
from attncheck.patterns.sums import Array, Lines, Sums, no_lines, total

__all__ = ["collect_evidence"]

CHUNK: Final = 1 << 22
"""Weights looked at together: enough that what all heads share is rarely worked out again."""

TEMPLATED: Final = ("duplicate_token", "induction", "delimiter")
"""Patterns scored through their mask; the others follow from sums by offset and by column."""


def collect_evidence(
    layer: LayerAttention,
    tokens: Any = None,
    *,
    segment_ids: Any = None,
    delimiters: Collection[Any] | None = None,
) -> PatternEvidence:
    """Collect from a layer's weights all that naming its heads needs.

    Args:
        layer: Weights ``(batch, head, query, key)`` with mask and causality.
        tokens: Strings or ids, ``(key,)`` or ``(batch, key)``; with them duplicate_token,
            induction and delimiter are scored.
        segment_ids: Segment of each key, ``(key,)`` or ``(batch, key)``; without them block is
            searched for.
        delimiters: Tokens that count as delimiters; default: punctuation and separators.

    Raises:
        ValueError: Tokens or segments of the wrong length.

    Example:
        >>> weights = torch.full((1, 2, 8, 8), 1 / 8)
        >>> collect_evidence(LayerAttention(weights)).lift("previous_token").tolist()
        [0.0, 0.0]
    """
    layer = layer.laid_out()
    grid = make_grid(layer, tokens, segment_ids, delimiters)
    valid = layer.valid_rows()
    per_head = max(1, layer.n_query * layer.n_key)
    heads = max(1, min(layer.n_heads, CHUNK // per_head))
    batches = max(1, CHUNK // (per_head * layer.n_heads))
    joined = [
        reduce(
            PatternEvidence.merge,
            (
                _measure(layer.weights[b, h], valid[b, h], _slice(grid, b, h))
                for b in _slices(layer.batch, batches)
            ),
        )
        for h in _slices(layer.n_heads, heads)
    ]
    return join_heads(joined)


def _slices(size: int, step: int) -> Iterator[slice]:
    return (slice(start, min(size, start + step)) for start in range(0, size, step))


def _slice(grid: Grid, batch: slice, head: slice) -> Grid:
    """Return the part of a grid that belongs to a part of the batch and of the heads."""

    def rows(held: Tensor | None) -> Tensor | None:
        return held if held is None or held.shape[0] == 1 else held[batch]

    visible = grid.visible if grid.visible.shape[0] == 1 else grid.visible[batch]
    visible = visible if visible.shape[1] == 1 else visible[:, head]
    return replace(
        grid,
        visible=visible,
        tokens=rows(grid.tokens),
        segments=rows(grid.segments),
        delimiters=rows(grid.delimiters),
    )


def _measure(weights: Tensor, valid: Tensor, grid: Grid) -> PatternEvidence:
    """Evidence of one chunk, summed over its batch."""
    weights = weights if weights.dtype in (torch.float32, torch.float64) else weights.float()
    seen = grid.visible.sum(-1)
    usable = valid & (seen >= 2)
    inverse = 1 / seen.clamp(min=1).to(torch.float64)
    shared = usable[:, :1] if bool((usable == usable[:, :1]).all()) else usable
    weights, square = _counted(weights.detach(), grid.visible & shared[..., None])
    use = usable.to(torch.float64)
    spread = ((square - inverse) * inverse).clamp(min=0) * use
    rows = (shared.to(torch.float64), shared * inverse, spread)
    masks = _masks(grid)
    held = {name: _masked(weights, mask, rows) for name, mask in masks.items()}
    first = PATTERNS["first_token"].selected(grid) if masks else grid.visible
    resting = {
        name: _masked(weights, first & ~mask & mask.any(-1, keepdim=True), rows)
        for name, mask in masks.items()
    }
    # Fresh memory costs more than a pass over it: what is used up in between has one place.
    scratch = torch.empty_like(weights)
    shortest = torch.minimum(weights, inverse[..., None].to(weights), out=scratch)
    overlap = total(shortest.sum(-1) * use)
    entropy = total(-row_log_dot(weights, scratch))
    beside = Sums(*(np.zeros(weights.shape[1]) for _ in range(4)))
    columns, offsets = weights.sum(2), no_lines(weights.shape[1])
    if grid.positional:
        diagonals = sum_diagonals(weights, grid.causal)
        offsets = _offsets(diagonals, grid, rows)
        held["block"], beside = measure_blocks(weights, grid, shared, columns, diagonals, scratch)
    return PatternEvidence(
        rows=total(use),
        inverse=total(use * inverse),
        square=total(square),
        entropy=entropy,
        capacity=total(seen.clamp(min=1).to(torch.float64).log() * use),
        overlap=overlap,
        positional=grid.positional,
        causal=grid.causal,
        spans=Spans.of(usable, grid.visible, grid.positions, grid.first),
        offsets=offsets,
        columns=_columns(columns, grid, rows),
        templates=held,
        resting=resting,
        beside=beside,
    )


def _counted(weights: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights, 0 where not kept, and the sum of their squares over each row."""
    held = weights * kept.to(weights.dtype)
    square = row_dot(held, held)
    if not bool(square.isfinite().all()):  # 0 times NaN is NaN; filling takes far longer
        held = weights.masked_fill(~kept, 0)
        square = row_dot(held, held)
    return held, square


def _masks(grid: Grid) -> dict[str, Tensor]:
    return {
        name: PATTERNS[name].selected(grid) for name in TEMPLATED if PATTERNS[name].applies(grid)
    }


def _numpy(tensor: Tensor) -> Array:
    return tensor.detach().to("cpu", torch.float64).numpy()


def _offsets(diagonals: Tensor, grid: Grid, rows: tuple[Tensor, Tensor, Tensor]) -> Lines:
    """Sums by distance between query and key."""
    n_query = grid.visible.shape[2]
    start = n_query - 1 if grid.causal else 0
    seen = by_offset(grid.visible.to(torch.float64))[..., start:]
    mass = diagonals.sum(0, dtype=torch.float64)[..., start:]
    return _lines(mass, seen, rows, zero=n_query - 1 - start)


def _columns(mass: Tensor, grid: Grid, rows: tuple[Tensor, Tensor, Tensor]) -> Lines:
    """Sums by key, counted from the first visible key of each sequence."""
    n_key = mass.shape[-1]
    seen = grid.visible.to(torch.float64)
    first = grid.first
    if bool((first > 0).any()):
        shift = (grid.keys + first[..., None]).clamp(max=n_key)
        index = shift.expand(*mass.shape[:2], n_key)
        mass = F.pad(mass, (0, 1)).gather(-1, index)
        size = (*seen.shape[:2], grid.visible.shape[2], n_key)
        seen = F.pad(seen, (0, 1)).gather(-1, shift[..., None, :].expand(size))
    return _lines(mass.sum(0, dtype=torch.float64), seen, rows, zero=0)


def _lines(mass: Tensor, seen: Tensor, rows: tuple[Tensor, Tensor, Tensor], zero: int) -> Lines:
    """Chance, rows and variance of every line follow from what each row sees."""
    use, chance, variance = (
        _numpy(_over_rows(per_row, seen).expand(len(mass), -1)).copy() for per_row in rows
    )
    return Lines(mass=_numpy(mass), chance=chance, rows=use, variance=variance, zero=zero)


def _over_rows(per_row: Tensor, seen: Tensor) -> Tensor:
    """Sum what rows hold over the rows that see each line, and over the batch: ``(head, line)``."""
    if seen.shape[:2] == (1, 1):
        return per_row.sum(0) @ seen[0, 0]
    # Also where neither side has a batch dimension of its own.
    return (per_row[..., None, :] @ seen)[..., 0, :].sum(0)


def _masked(weights: Tensor, mask: Tensor, rows: tuple[Tensor, Tensor, Tensor]) -> Sums:
    """Sums of one relation given as a mask ``(batch or 1, head or 1, query, key)``."""
    selected = mask.sum(-1)
    has = (selected > 0).to(torch.float64)
    n_heads = weights.shape[1]
    mass = (weights * mask).sum(-1, dtype=torch.float64)

    def of_all(per_row: Tensor) -> Array:
        return np.broadcast_to(total(per_row), n_heads).copy()

    use, chance, variance = rows
    return Sums(
        mass=total(mass * has),
        chance=of_all(chance * selected),
        rows=of_all(use * has),
        variance=of_all(variance * selected),
    )
