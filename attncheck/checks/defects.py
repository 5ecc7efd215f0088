"""What rows that are no distribution most likely are, in one line and with the way out."""

from __future__ import annotations

import torch
from torch import Tensor

from attncheck.attention import LayerAttention
from attncheck.tolerances import tolerance_for

__all__ = ["diagnose"]

DROPPED = 0.02
"""Dropout leaves at least this share of the visible weights exactly 0."""


def diagnose(
    layer: LayerAttention, sums: Tensor, nan: Tensor, broken: Tensor, limit: float
) -> str | None:
    """Name the defect behind broken rows.

    Args:
        layer: The layer.
        sums: Row sums, learned sink included, float64 ``(batch, head, query)``.
        nan: Rows that are not finite.
        broken: Rows that are no distribution, those with NaN included.
        limit: Largest ``|row sum - 1|`` that counts as 1.

    Returns:
        One sentence, or None if the numbers look like nothing known.
    """
    weights = layer.weights
    if nan.any():
        return _of_nan(weights, nan)
    if _converted(weights, sums):
        wide = tolerance_for("float32").row_sum
        return f"float64 that holds float32 numbers: computed in float32? atol={wide:.2g} fits that"
    zero = (weights == 0).all(-1)
    if zero[broken].all():
        return "these rows are all zero: where that is meant, pass mask= or masked_rows='zero'"
    columns = weights.sum(-2, dtype=torch.float64)
    if layer.n_query > 1 and _ones(columns, limit):
        return "the columns sum to 1: softmax ran over queries, use softmax(dim=-1)"
    if layer.n_heads > 1 and _ones(weights.sum(1, dtype=torch.float64), limit):
        return "the heads sum to 1: softmax ran over heads, use softmax(dim=-1)"
    seen = weights.masked_fill(~layer.visible(), 0).sum(-1, dtype=torch.float64)
    if _ones(seen[broken], limit):
        return "visible keys alone sum to 1: hidden (padded) keys carry weight on top"
    first = _first_keys(weights, limit)
    if first:
        extra = layer.n_key - first
        return f"the first {first} keys sum to 1: the last {extra} look like padding, cut them off"
    return _of_values(layer, sums, broken, limit)


def _of_nan(weights: Tensor, nan: Tensor) -> str:
    if torch.isnan(weights).all(-1)[nan].all():
        return (
            "whole rows of NaN: softmax of a fully masked row; where that is meant, "
            "masked_rows='nan' allows it"
        )
    return "NaN or inf inside rows: look for overflow in the scores (float16?)"


def _converted(weights: Tensor, sums: Tensor) -> bool:
    """Whether float64 weights were rounded to float32 once, and are off by no more than that."""
    if weights.dtype != torch.float64 or not torch.equal(weights.float().double(), weights):
        return False
    return _ones(sums, tolerance_for("float32").row_sum)


def _of_values(layer: LayerAttention, sums: Tensor, broken: Tensor, limit: float) -> str | None:
    """Tell scores, dropout and a missing sink apart by the values."""
    weights, wrong = layer.weights, sums[broken]
    if (weights < -limit).any() and (weights > 1 + limit).any():
        return "these look like scores: apply softmax(dim=-1)"
    if (weights < -limit).any():
        return "a weight below 0 comes from no softmax: signed or packed internal output?"
    if _looks_dropped(layer, sums):
        return "looks like dropout: call model.eval(), or take weights before dropout"
    if (wrong < 1).all():
        return (
            "rows fall short: a learned sink takes the rest (LayerAttention(sink_mass=...)), "
            "or keys were cut off"
        )
    if (wrong > 1).all() and wrong.std(unbiased=False) <= limit:
        return f"every such row sums to {float(wrong.mean()):.6g}: scaled after softmax"
    return None


def _looks_dropped(layer: LayerAttention, sums: Tensor) -> bool:
    """Scattered exact zeros among visible keys, and sums on both sides of 1."""
    seen = layer.visible().expand(layer.weights.shape)
    zeros = ((layer.weights == 0) & seen).sum() / seen.sum().clamp(min=1)
    both = bool((sums > 1).any()) and bool((sums < 1).any())
    return both and float(zeros) >= DROPPED


def _first_keys(weights: Tensor, limit: float) -> int:
    """How many first keys sum to 1 in every row, the others being more; 0 if no number does."""
    sums = weights.double().cumsum(-1)[..., :-1]
    hits = ((sums - 1).abs() <= limit).all(2).all(1).all(0)
    return int(hits.nonzero()[0]) + 1 if hits.any() else 0


def _ones(sums: Tensor, limit: float) -> bool:
    return bool(((sums - 1).abs() <= limit).all())
