"""A trial of kernels on a device: some of what they found, found again by torch.

Kernels are compiled for the device that is there, by the compiler that is there. The first time
that one runs in some form, its numbers must be those of plain torch on the same layer, so that a
wrong compiler, driver or device is told instead of measured.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from attncheck.attention import QueryKey
from attncheck.evaluate.tally import Tally

__all__ = ["departure"]

WEIGHTS: Final = 1 << 24
"""Weights that torch makes for a trial."""

TOLERANCE: Final = 1e-2
"""Part of itself, or of 1, by which a number may differ: more than any rounding."""


def departure(tally: Tally, record: QueryKey, batch: slice) -> str | None:
    """Compare the last rows of a tally, and its totals, with torch.

    Args:
        tally: What kernels left behind.
        record: Query and key of the layer.
        batch: Which of its sequences the tally is of.

    Returns:
        What differs; None if nothing does.
    """
    reach, n_query = tally.reach, tally.reach.n_query
    of_row = record.shape[0] * record.shape[1] * max(1, reach.n_key)
    rows = slice(max(0, n_query - max(1, WEIGHTS // of_row)), n_query)
    visible = reach.visible(rows, slice(0, reach.n_key))
    scores = record.scores(rows).expand(record.shape[0], -1, -1, -1)[batch].double()
    scores = scores.masked_fill(~visible, -torch.inf)
    weights = torch.softmax(scores, -1)
    share = tally.rows["share"][..., rows].double()
    even = 1 / reach.seen[..., rows].clamp(min=1).double()
    usable = tally.usable[..., rows]
    wanted = {
        "largest weight": (tally.rows["top"][..., rows], weights.amax(-1)),
        "entropy": (tally.entropy[..., rows], torch.special.entr(weights).sum(-1)),
        "norm": (tally.rows["norm"][..., rows], weights.norm(dim=-1)),
        "overlap with even attention": (
            tally.rows["overlap"][..., rows],
            torch.minimum(weights * share[..., None], even[..., None]).sum(-1) * usable,
        ),
    }
    if tally.offsets is not None:
        keys = torch.arange(reach.n_key, device=weights.device)
        away = (reach.positions[rows, None] - keys).abs().double()
        wanted["mean distance"] = tally.rows["far"][..., rows], (weights * away).sum(-1)
    counted = tally.valid[..., rows] & torch.isfinite(weights).all(-1)
    for name, (found, expected) in wanted.items():
        if _differs(found[counted], expected[counted]):
            return name
    whole = (tally.rows["share"].double() * tally.usable).sum(-1)
    sums = {"by key": tally.columns, "by distance": tally.offsets, "by cell": tally.cells}
    known = torch.isfinite(tally.entropy).all(-1)
    for name, held in sums.items():
        if held is not None and _differs(held.double().flatten(2).sum(-1)[known], whole[known]):
            return f"sum {name}"
    return None


def _differs(found: Tensor, expected: Tensor) -> bool:
    off = (found.double() - expected).abs() - TOLERANCE * expected.abs().clamp(min=1)
    return bool((off > 0).any()) or bool(off.isnan().any())
