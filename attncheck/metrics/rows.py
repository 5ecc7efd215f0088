"""`row_measures`: one measure of every query row, where the mean of a head would hide something."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from attncheck.attention import AttentionLike, as_attention
from attncheck.metrics.catalogue import METRICS

__all__ = ["row_measures"]


def row_measures(
    attention: AttentionLike,
    measure: str,
    *,
    mask: Any = None,
    causal: bool | None = None,
) -> list[Tensor]:
    """Evaluate one measure for each query row on its own.

    A head that looks back one token only early in a text has a middling mean; its rows tell.

    Args:
        attention: Attention weights in any form that `as_attention` takes.
        measure: A name of `METRICS`.
        mask: Which keys are visible, see `as_visible`. Default: what the maps carry.
        causal: Whether queries see no later key. Default: as `as_attention` finds it.

    Returns:
        One tensor per layer, ``(batch, head, query)``, float64, in the unit of the metric; NaN
        where a row has no such value (padding, or a single visible key and a ratio to it).

    Raises:
        ValueError: ``measure`` is not in the catalogue, or ``attention`` is not attention.

    Example:
        >>> import torch
        >>> weights = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
        >>> row_measures(weights, "effective_keys")[0]
        tensor([[[1., 2., 1.]]], dtype=torch.float64)
    """
    if measure not in METRICS:
        raise ValueError(f"measure: no {measure!r}; the measures are {', '.join(METRICS)}")
    maps = as_attention(attention, mask=mask, causal=causal)
    return [METRICS[measure].rows(layer)[0] for layer in maps.layers]
