"""`compute_attention_statistics`: a first look at a head, in eleven numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attncheck.attention import AttentionLike, AttentionMaps, LayerAttention, as_attention
from attncheck.attention.light import on_one_thread_if_light
from attncheck.metrics.blocks import RowBlock, row_dot
from attncheck.metrics.catalogue import METRICS
from attncheck.metrics.metric import Metric, measure_layer

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


@on_one_thread_if_light
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
    shape = (layer.batch, layer.n_heads, layer.n_query)
    seen = layer.visible().sum(-1).expand(shape).masked_fill(~layer.valid_rows(), 0)
    n_weights = seen.sum(-1)
    # What the mean is when rows sum to 1: around it no digits cancel in the variance.
    shift = float((seen > 0).sum() / n_weights.sum().clamp_min(1).double())
    metrics = [*(METRICS[name] for name in FROM_ROWS.values()), *_of_weights(shift)]
    rows = {name: values for name, (values, _) in measure_layer(layer, metrics).items()}
    mean = rows["mass"].nansum(-1) / n_weights
    variance = rows["square"].nansum(-1) / n_weights - (mean - shift).square()
    own = rows["own"].nanmean(-1)
    statistics = {
        "mean": mean,
        "std": variance.clamp_min(0).sqrt(),
        "max": _extreme(rows["high"], -torch.inf).amax(-1),
        "min": _extreme(rows["low"], torch.inf).amin(-1),
        "diagonal_mean": own,
        "diagonal_std": (rows["own"] - own[..., None]).square().nanmean(-1).sqrt(),
        "max_entropy": seen.double().log().masked_fill(seen == 0, torch.nan).nanmean(-1),
    }
    for statistic, measure in FROM_ROWS.items():
        statistics[statistic] = rows[measure].nanmean(-1)
    return {name: statistics[name].cpu().numpy() for name in KEYS}


def _of_weights(shift: float) -> list[Metric]:
    """Rows of what only this summary needs, as measures, so that one walk serves all."""

    def square(block: RowBlock) -> Tensor:
        centred = block.hide_(block.near - shift)
        return row_dot(centred, centred)

    def high(block: RowBlock) -> Tensor:
        return block.highest if block.clean else block.weights.amax(-1)

    def low(block: RowBlock) -> Tensor:
        if block.shown is None:
            return block.lowest
        # Hidden keys are lifted above every weight.
        lifted = block.near.clone()
        lifted[..., block.edge :] += 2 - 2 * block.shown
        return lifted.amin(-1)

    found: dict[str, Callable[[RowBlock], Tensor]] = {
        "mass": lambda block: block.mass,
        "square": square,
        "high": high,
        "low": low,
    }
    metrics = [_private(name, _over_valid_rows(measure)) for name, measure in found.items()]
    return [*metrics, _private("own", _on_own_position)]


def _private(name: str, measure: Callable[[RowBlock], tuple[Tensor, Tensor]]) -> Metric:
    return Metric(name, "share", "part of compute_attention_statistics", "", measure)


def _over_valid_rows(
    measure: Callable[[RowBlock], Tensor],
) -> Callable[[RowBlock], tuple[Tensor, Tensor]]:
    return lambda block: (measure(block), block.valid)


def _on_own_position(block: RowBlock) -> tuple[Tensor, Tensor]:
    if block.places is None:
        return torch.zeros_like(block.mass), torch.zeros_like(block.valid)
    positions = block.places.positions
    index = positions.clamp(min=0).expand(block.valid.shape)[..., None]
    return block.given.gather(-1, index)[..., 0], block.valid & (positions >= 0)


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
