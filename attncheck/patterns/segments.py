"""A search for the segments of a head that nobody described: where do its blocks begin?

The objective is the mass inside the blocks above what even attention would put there (the
modularity of a partition into runs). The true partition is its maximum: joining two blocks adds
chance without mass, cutting one loses more mass than chance. Cuts are added one at a time, each
where it gains most, which needs only two-dimensional prefix sums and runs for all heads at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attncheck.patterns import thresholds

__all__ = ["find_segments"]


def find_segments(excess: Tensor, row_variance: Tensor) -> Tensor:
    """Cut sequences into runs that keep their attention to themselves.

    Args:
        excess: Weights less even attention, 0 where hidden, float64 ``(item, query, key)``;
            queries are the last positions of the keys.
        row_variance: Variance of a weight of each row under chance alone, ``(item, query)``.

    Returns:
        Position at which each key's segment begins, ``(item, key)``.

    Example:
        >>> blocks = torch.block_diag(torch.ones(3, 3) / 3, torch.ones(5, 5) / 5).double()
        >>> find_segments((blocks - 1 / 8)[None], torch.zeros(1, 8)).tolist()
        [[0, 0, 0, 3, 3, 3, 3, 3]]
    """
    items, n_query, n_key = excess.shape
    sums = F.pad(excess.cumsum(-1).cumsum(-2), (1, 0, 1, 0)).flatten(1)
    shift = n_key - n_query
    spread = F.pad(row_variance.cumsum(-1), (1, 0))
    above = bool((excess.triu(1 + shift) != 0).any())
    place = torch.arange(n_key + 1, device=excess.device).expand(items, -1)
    start = torch.zeros_like(place)
    end = torch.full_like(place, n_key)

    def at(row: Tensor, column: Tensor) -> Tensor:
        return sums.gather(1, (row - shift).clamp(min=0) * (n_key + 1) + column)

    def noise(row: Tensor, last: Tensor) -> Tensor:
        return spread.gather(1, (last - shift).clamp(min=0)) - spread.gather(
            1, (row - shift).clamp(min=0)
        )

    least = thresholds.MIN_SEGMENT
    for _ in range(min(thresholds.MAX_CUTS, n_key // least)):
        upper = at(place, end) - at(start, end) - at(place, place) + at(start, place)
        lower = at(end, place) - at(place, place) - at(end, start) + at(place, start)
        variance = (place - start) * noise(place, end)
        if above:
            variance = variance + (end - place) * noise(start, place)
        gain = -(upper + lower)
        fits = (place - start >= least) & (end - place >= least)
        gain = gain.masked_fill(~fits | (gain <= thresholds.CUT_NOISE * variance.sqrt() + 1e-9), 0)
        best, cut = gain.max(-1, keepdim=True)
        if not bool((best > 0).any()):
            break
        inside = (start <= cut) & (cut < end) & (best > 0)
        start, end = (
            torch.where(inside & (place >= cut), cut, start),
            torch.where(inside & (place < cut), cut, end),
        )
    return start[:, :-1]
