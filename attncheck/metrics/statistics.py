"""`compute_attention_statistics`: a first look at a head, in eleven numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attncheck.attention import AttentionLike, AttentionMaps, LayerAttention, as_attention
from attncheck.metrics.blocks import row_blocks, row_sum
from attncheck.metrics.catalogue import METRICS
from attncheck.metrics.metric import measure_layer

__all__ = ["compute_attention_statistics"]

KEYS: Final = (
    "mean",
    "std",
    "max",
    "min",
    "diagonal_mean",
    "diagonal_std",
    "mean_entropy",
    "max_entropy",
    "normalized_entropy",
    "sparsity_gini",
    "effective_tokens",
)

FROM_ROWS: Final = {
    "mean_entropy": "entropy",
    "normalized_entropy": "normalized_entropy",
    "sparsity_gini": "gini",
    "effective_tokens": "effective_keys",
}
"""Statistics that are the mean of a row measure."""

Array = npt.NDArray[np.float64]


def compute_attention_statistics(
    attention: AttentionLike, *, mask: Any = None, causal: bool | None = None
) -> dict[str, Any]:
    """Compute summary statistics of attention weights.

    All of them read visible keys of valid rows only: neither padding nor the empty half of a
    causal matrix dilutes them.

    Args:
        attention: Attention weights in any form that `as_attention` takes.
        mask: Which keys are visible, see `as_visible`. Default: what the maps carry.
        causal: Whether queries see no later key. Default: as `as_attention` finds it.

    Returns:
        For a single matrix ``(query, key)`` floats; for a tensor with more dimensions float64
        arrays with its leading dimensions, such as ``(head,)`` or ``(batch, head)``; for anything
        else (lists, outputs, maps) arrays ``(layer, batch, head)``, NaN where a layer has fewer
        heads. NaN also stands where no row has such a value: ``diagonal_*`` in cross-attention,
        ``normalized_entropy`` and ``sparsity_gini`` where no row sees two keys.

        - ``mean``, ``std``, ``max``, ``min``: of the weights.
        - ``diagonal_mean``, ``diagonal_std``: of the weights of a query on its own position.
        - ``mean_entropy``: mean entropy of the rows, in nats.
        - ``max_entropy``: the largest ``mean_entropy`` possible, the mean of log(visible keys).
        - ``normalized_entropy``: mean of entropy / log(visible keys): 1 is uniform.
        - ``sparsity_gini``: mean Gini coefficient of the rows: 0 is uniform, 1 is one key.
        - ``effective_tokens``: mean of exp(entropy).

    Raises:
        ValueError: ``attention`` is not attention.

    Example:
        >>> causal = torch.ones(4, 4).tril() / torch.arange(1, 5)[:, None]
        >>> statistics = compute_attention_statistics(causal)
        >>> round(statistics["normalized_entropy"], 6), round(statistics["sparsity_gini"], 6)
        (1.0, 0.0)
        >>> compute_attention_statistics(torch.full((2, 8, 5, 5), 0.2))["max"].shape
        (2, 8)
    """
    maps = as_attention(attention, mask=mask, causal=causal)
    layers = [_of_layer(layer) for layer in maps.layers]
    stacked = {name: _stack([layer[name] for layer in layers]) for name in layers[0]}
    leading = _leading_shape(attention)
    if leading is None:
        return dict(stacked)
    shaped = {name: values.reshape(leading) for name, values in stacked.items()}
    return shaped if leading else {name: float(values) for name, values in shaped.items()}


def _of_layer(layer: LayerAttention) -> dict[str, Array]:
    """Every statistic of one layer, each ``(batch, head)``."""
    rows = measure_layer(layer, [METRICS[name] for name in FROM_ROWS.values()])
    statistics = _of_weights(layer)
    for statistic, measure in FROM_ROWS.items():
        statistics[statistic] = rows[measure][0].nanmean(-1)
    return {name: statistics[name].cpu().numpy() for name in KEYS}


def _of_weights(layer: LayerAttention) -> dict[str, Tensor]:
    """Statistics of single weights: one walk, in which squares are taken around a fixed shift.

    The shift is what the mean is when rows sum to 1, so that no digits cancel in the variance.
    """
    shape = (layer.batch, layer.n_heads, layer.n_query)
    device = layer.weights.device
    seen = layer.visible().sum(-1).expand(shape).masked_fill(~layer.valid_rows(), 0)
    n_rows, n_weights = (seen > 0).sum(-1), seen.sum(-1)
    shift = torch.nan_to_num(n_rows / n_weights.double())
    per_row = {
        name: torch.full(shape, torch.nan, dtype=torch.float64, device=device)
        for name in ("mass", "square", "max", "min", "own")
    }
    for window, block in row_blocks(layer):
        hidden = None if block.visible is None else ~block.visible
        centred = block.given - shift[window[:2]][..., None, None]
        low, high = block.given, block.given
        if hidden is not None:
            centred = centred.masked_fill_(hidden, 0)
            low, high = low.masked_fill(hidden, torch.inf), high.masked_fill(hidden, -torch.inf)
        found = {
            "mass": row_sum(centred),
            "square": row_sum(centred.square()),
            "max": high.amax(-1).double(),
            "min": low.amin(-1).double(),
        }
        if block.positions is not None:
            found["own"] = _on_own_position(block.given, block.positions)
        for name, values in found.items():
            per_row[name][window] = values.masked_fill(~block.valid, torch.nan)
    offset = per_row["mass"].nansum(-1) / n_weights
    variance = per_row["square"].nansum(-1) / n_weights - offset.square()
    own_mean = per_row["own"].nanmean(-1)
    return {
        "mean": shift + offset,
        "std": variance.clamp_min(0).sqrt(),
        "max": _extreme(per_row["max"], -torch.inf).amax(-1),
        "min": _extreme(per_row["min"], torch.inf).amin(-1),
        "diagonal_mean": own_mean,
        "diagonal_std": (per_row["own"] - own_mean[..., None]).square().nanmean(-1).sqrt(),
        "max_entropy": seen.double().log().masked_fill(seen == 0, torch.nan).nanmean(-1),
    }


def _on_own_position(weights: Tensor, positions: Tensor) -> Tensor:
    index = positions.clamp(min=0).expand(weights.shape[:3])[..., None]
    own = weights.gather(-1, index)[..., 0].double()
    return own.masked_fill(positions < 0, torch.nan)


def _extreme(rows: Tensor, neutral: float) -> Tensor:
    """Rows without a value do not take part; a head with none at all stays NaN."""
    filled = rows.nan_to_num(nan=neutral)
    return filled.masked_fill(rows.isnan().all(-1, keepdim=True), torch.nan)


def _stack(layers: Sequence[Array]) -> Array:
    """Stack ``(batch, head)`` into ``(layer, batch, head)``, NaN where a layer has fewer."""
    batch = max(values.shape[0] for values in layers)
    heads = max(values.shape[1] for values in layers)
    stacked = np.full((len(layers), batch, heads), np.nan)
    for held, values in zip(stacked, layers, strict=True):
        held[: values.shape[0], : values.shape[1]] = values
    return stacked


def _leading_shape(attention: AttentionLike) -> tuple[int, ...] | None:
    """Dimensions before ``(query, key)``; None where these are ``(layer, batch, head)``."""
    if isinstance(attention, AttentionMaps):
        return None
    if isinstance(attention, LayerAttention):
        return attention.batch, attention.n_heads
    shape = getattr(attention, "shape", None)
    if shape is not None:
        return tuple(shape[:-2])
    first: Any = attention
    depth = 0
    while isinstance(first, list | tuple) and first:
        first, depth = first[0], depth + 1
    return tuple(np.shape(attention)[:-2]) if depth and isinstance(first, int | float) else None
