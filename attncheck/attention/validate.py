"""What is not attention, and why: errors that name the value and the way out."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from attncheck.attention.maps import LayerAttention
from attncheck.tolerances import TOLERANCES, tolerance_for

__all__ = ["require_cells", "require_floating", "require_weights"]

AXES: Final = (("batch", "sequences"), ("head", "heads"), ("query", "queries"), ("key", "keys"))
"""Name of each axis, and what lies on it."""

SUMMED: Final = 1 << 18
"""Weights whose float64 copy stays in a processor's cache."""


def require_floating(tensor: Tensor, name: str) -> Tensor:
    """Return the tensor if its dtype can hold weights; integers that are 0 or 1 become float32.

    Raises:
        TypeError: It is of another dtype or layout, or holds no numbers.
    """
    if tensor.is_nested or tensor.layout != torch.strided:
        kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        raise TypeError(
            f"{name}: is a {kind} tensor; expected a dense one (to_dense(), or one call for each "
            "of its parts)"
        )
    if tensor.is_meta:
        raise TypeError(f"{name}: is on the meta device and holds no numbers")
    if str(tensor.dtype).removeprefix("torch.") in TOLERANCES:
        return tensor
    if tensor.is_complex():
        raise TypeError(f"{name}: is {tensor.dtype}; attention weights are real")
    if tensor.is_floating_point():
        raise TypeError(
            f"{name}: is {tensor.dtype}, in which no row of weights is exact; convert it to "
            "float32 first"
        )
    if tensor.numel() and not ((tensor == 0) | (tensor == 1)).all():
        raise TypeError(
            f"{name}: is {tensor.dtype}; expected floating-point weights, not token ids"
        )
    return tensor.to(torch.float32)


def require_cells(shape: tuple[int, ...], name: str) -> None:
    """Reject attention of an axis without entries: there is nothing to judge or to measure.

    Args:
        shape: ``(..., query, key)``, up to four axes.
        name: What the message calls the attention.

    Raises:
        ValueError: Names what there is none of.
    """
    axes = AXES[4 - len(shape) :]
    named = ", ".join(one for one, _ in axes)
    missing = [many for (_, many), size in zip(axes, shape, strict=True) if size == 0]
    if missing:
        raise ValueError(
            f"{name}: empty, has no {', no '.join(missing)}: ({named}) = {tuple(shape)}; expected "
            "one sequence of one token at least"
        )


def require_weights(layer: LayerAttention, name: str) -> None:
    """Reject a layer whose values are no attention weights.

    Rows that the mask hides, and rows that are exactly zero, may hold anything finite or NaN:
    they carry no attention and no measure reads them.

    Raises:
        ValueError: NaN or infinite, negative, or rows that do not sum to 1.
    """
    weights = layer.weights
    highest, lowest = weights.amax(-1), weights.amin(-1)  # NaN comes through both
    valid = layer.valid_rows((highest, lowest))
    finite = (torch.isfinite(highest) & torch.isfinite(lowest)) | ~valid
    if not finite.all():
        where = _first(~finite)
        raise ValueError(
            f"{name}: has NaN or infinite values, first in row {where} (batch, head, query). A row "
            "that may see no key gives NaN in softmax: pass mask= so that such rows are left out"
        )
    tolerance = tolerance_for(weights.dtype)
    least = lowest.masked_fill(~valid, 0).min()
    if least < -tolerance.atol:
        raise ValueError(
            f"{name}: has negative values, down to {least.item():.4g}; these look like scores: "
            "apply softmax(dim=-1) first"
        )
    sums = _row_sums(weights)
    if layer.sink_mass is not None:
        sums = sums + layer.sink_mass.to(sums)
    error = (sums - 1).abs().masked_fill(~valid, 0)
    if error.max() > max(tolerance.row_sum, 1e-3):
        where = _first(error == error.max())
        raise ValueError(
            f"{name}: rows do not sum to 1: {_at(sums, where):.6g} in row {where} (batch, head, "
            f"query). {_diagnose(weights, sums, valid)}"
        )


def _row_sums(weights: Tensor) -> Tensor:
    """Sum in float64, on a CPU a few heads at a time: torch copies what it sums to float64."""
    step = weights.shape[1]
    if weights.device.type == "cpu":
        step = max(1, SUMMED * step // max(1, weights.numel()))
    starts = range(0, weights.shape[1], step)
    parts = [weights[:, h : h + step].sum(-1, dtype=torch.float64) for h in starts]
    return torch.cat(parts, 1)


def _diagnose(weights: Tensor, sums: Tensor, valid: Tensor) -> str:
    """Say what rows that miss 1 most likely are."""
    if bool((weights > 1 + 1e-3).any()):
        return "Values above 1 look like scores: apply softmax(dim=-1) first"
    columns = weights.sum(-2, dtype=torch.float64)
    if weights.shape[-1] == weights.shape[-2] and bool(((columns - 1).abs() < 1e-3).all()):
        return "The columns do sum to 1: is the last dimension really the keys?"
    zeros = (weights == 0).sum(-1)[valid].double().mean() / weights.shape[-1]
    if bool((sums[valid] > 1 + 1e-3).any()) and zeros > 0.02:
        return "Scattered zeros and sums on both sides of 1 look like dropout: call model.eval()"
    if bool((sums[valid] < 1).all()):
        return (
            "All rows fall short: a learned sink takes the rest (pass LayerAttention with "
            "sink_mass), or keys were cut off (renormalise first)"
        )
    return "Use attncheck.assert_row_stochastic to see which heads and rows"


def _first(where: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.nonzero(where)[0])


def _at(tensor: Tensor, index: tuple[int, ...]) -> float:
    return float(tensor[index])
