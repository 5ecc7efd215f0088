"""A trial of kernels on a device: some of what they found, found again by torch.

Kernels are compiled for the device that is there, by the compiler that is there. The first time
that one runs in some form, its numbers must be those of plain torch on the same layer, so that a
wrong compiler, driver or device is told instead of measured. The last rows of the first sequence
are made in float64; what all rows add up to must be the same by key, by distance and by cell, and
in its place: a sum that lies one key off changes what distances add up to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from attncheck.attention import QueryKey
from attncheck.evaluate.tally import Tally

__all__ = ["departure"]

WEIGHTS: Final = 1 << 22
"""Weights that torch makes for a trial."""

TOLERANCE: Final = 1e-2
"""Part of itself, or of 1, by which a number may differ: more than any rounding."""

ROUNDING: Final = 2.0**-18
"""Part of the largest score by which scores in float32 may differ, with room."""


def departure(tally: Tally, record: QueryKey, batch: slice) -> str | None:
    """Compare the last rows of a tally's first sequence, and its totals, with torch.

    Args:
        tally: What kernels left behind.
        record: Query and key of the layer.
        batch: Which of its sequences the tally is of.

    Returns:
        What differs; None if nothing does.
    """
    for name, found, expected, slack in (*_rows(tally, record, batch.start), *_sums(tally)):
        off = (found.double() - expected).abs() - TOLERANCE * expected.abs().clamp(min=1)
        known = expected.isfinite()
        if bool(((off > slack) | off.isnan())[known].any()):
            return name
    return None


Compared = tuple[str, Tensor, Tensor, Tensor | float]


def _rows(tally: Tally, record: QueryKey, sequence: int) -> Iterator[Compared]:
    """Numbers of the last rows, and the same from float64 weights."""
    reach, n_query = tally.reach, tally.reach.n_query
    heads = record.shape[1]
    rows = slice(max(0, n_query - max(1, WEIGHTS // (heads * max(1, reach.n_key)))), n_query)
    visible = reach.visible(rows, slice(0, reach.n_key))[:1]
    weights, peak = _weights(record, sequence, rows, visible)
    counted = tally.valid[:1, :, rows] & weights.isfinite().all(-1)

    def known(held: Tensor) -> Tensor:
        return held.masked_fill(~counted, torch.nan)

    def of(name: str) -> Tensor:
        return tally.rows[name][:1, :, rows]

    slack = (peak.abs() * ROUNDING).nan_to_num(0, 0, 0)
    yield "largest score", of("peak"), known(peak), slack
    yield "largest weight", of("top"), known(weights.amax(-1)), slack
    entropy = torch.special.entr(weights).sum(-1)
    yield "entropy", tally.entropy[:1, :, rows], known(entropy), slack * (reach.n_key**0.5)
    yield "norm", of("norm"), known(weights.norm(dim=-1)), slack
    first = tally.first[:1].expand(1, heads)[..., None, None].expand(*weights.shape[:3], 1)
    yield "weight of the first key", of("first"), known(weights.gather(-1, first)[..., 0]), slack
    even = 1 / reach.seen[:1, :, rows].clamp(min=1).double()
    shared = torch.minimum(weights * of("share").double()[..., None], even[..., None]).sum(-1)
    usable = tally.usable[:1, :, rows]
    yield "overlap with even attention", of("overlap"), known(shared * usable), slack
    if tally.offsets is not None:
        keys = torch.arange(reach.n_key, device=weights.device)
        away = (reach.positions[rows, None] - keys).abs().double()
        room = slack * reach.n_key
        yield "mean distance", of("far"), known((weights * away).sum(-1)), room


def _weights(
    record: QueryKey, sequence: int, rows: slice, visible: Tensor
) -> tuple[Tensor, Tensor]:
    """Weights of some rows of one sequence, and the largest score of each row."""

    def own(held: Tensor) -> Tensor:
        one = held[sequence : sequence + 1] if held.ndim == 4 and len(held) > 1 else held
        return one.double() if one.is_floating_point() else one

    scores = record.moved(own).scores(rows).masked_fill(~visible, -torch.inf)
    return torch.softmax(scores, -1), scores.amax(-1)


def _sums(tally: Tally) -> Iterator[Compared]:
    """What all rows add up to, by key, by distance and by cell."""
    reach, grid = tally.reach, tally.grid
    share = tally.rows["share"].double().masked_fill(~tally.usable, 0)
    broken = (tally.entropy.isnan() & tally.usable).any(-1)

    def known(held: Tensor) -> Tensor:
        gone = broken.view(*broken.shape, *[1] * (held.ndim - 2))
        return held.double().masked_fill(gone, torch.nan)

    yield "sum by key", tally.columns.sum(-1), known(share.sum(-1)), 0.0
    if tally.offsets is None or tally.cells is None:
        return
    slack = (TOLERANCE + 1e-5 * reach.n_key) * tally.usable.sum(-1)
    yield "sum by distance", tally.offsets.sum(-1), known(share.sum(-1)), 0.0
    first = reach.n_key - 1  # how far the farthest key behind the last query lies
    behind = first - torch.arange(tally.offsets.shape[-1], device=share.device).double()
    far = (tally.rows["far"].double() * share).masked_fill(~tally.usable, 0)
    yield "distance of sums by distance", tally.offsets @ behind.abs(), known(far.sum(-1)), slack
    places = share @ reach.positions.double()
    keys = torch.arange(reach.n_key, device=share.device)
    where = places - tally.offsets @ behind
    yield "place of sums by key", tally.columns @ keys.double(), known(where), slack
    cells = tally.cells.double()
    room = torch.zeros_like(cells[..., 0])
    rows = torch.arange(reach.n_query, device=share.device) // grid.step
    by_rows = room.index_add(-1, rows, share)
    yield "sum by cell of rows", cells.sum(-1), known(by_rows), 0.0
    by_keys = torch.zeros_like(cells[..., 0, :]).index_add(-1, grid.of_keys(keys), tally.columns)
    yield "sum by cell of keys", cells.sum(-2), known(by_keys), 0.0
