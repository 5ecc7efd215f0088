"""Every measure again, as plain loops over Python floats, straight from its definition."""

from __future__ import annotations

import math

import torch

from attncheck.attention import LayerAttention

NONE = float("nan")


def reference(measure: str, layer: LayerAttention) -> torch.Tensor:
    """Values ``(batch, head, query)``, NaN where a row has none."""
    batch, heads, queries, keys = layer.weights.shape
    out = torch.full((batch, heads, queries), NONE, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            view = [[_sees(layer, b, h, i, j) for j in range(keys)] for i in range(queries)]
            first = min((j for row in view for j in range(keys) if row[j]), default=0)
            for i in range(queries):
                if _is_padding(layer, view, i) or not any(view[i]):
                    continue
                row = layer.weights[b, h, i].double().tolist()
                if all(weight == 0 for weight in row):
                    continue
                sink = None if layer.sink_mass is None else float(layer.sink_mass[b, h, i])
                position = i + keys - queries if layer.positional else None
                out[b, h, i] = _of_row(measure, row, view[i], sink, position, first)
    return out


def _sees(layer: LayerAttention, b: int, h: int, i: int, j: int) -> bool:
    if layer.causal and j > i + layer.n_key - layer.n_query:
        return False
    if layer.mask is None:
        return True
    return bool(layer.mask.expand(layer.weights.shape)[b, h, i, j])


def _is_padding(layer: LayerAttention, view: list[list[bool]], i: int) -> bool:
    if not layer.positional or layer.mask is None:
        return False
    own = max(i + layer.n_key - layer.n_query, 0)
    return not any(row[own] for row in view)


def _of_row(
    measure: str,
    row: list[float],
    sees: list[bool],
    sink: float | None,
    position: int | None,
    first: int,
) -> float:
    keys = [j for j in range(len(row)) if sees[j]]
    if measure == "row_sum_error":
        return abs(math.fsum(row) + (sink or 0.0) - 1)
    if measure == "future_mass":
        if position is None:
            return NONE
        return math.fsum(row[j] for j in range(len(row)) if j > position)
    if measure == "sink_mass":
        behind = position is None or position > first
        if not behind or (sink is None and not sees[first]):
            return NONE
        return (row[first] if sees[first] else 0.0) + (sink or 0.0)
    seen = [row[j] for j in keys]
    if sum(seen) == 0:
        return NONE
    if measure == "max_weight":
        return max(seen)
    p = [weight / math.fsum(seen) for weight in seen]
    return _of_distribution(measure, p, keys, position)


def _of_distribution(measure: str, p: list[float], keys: list[int], position: int | None) -> float:
    entropy = -math.fsum(x * math.log(x) for x in p if x > 0)
    v = len(p)
    if measure == "entropy":
        return entropy
    if measure == "effective_keys":
        return math.exp(entropy)
    if measure == "participation_ratio":
        return 1 / math.fsum(x * x for x in p)
    if measure == "mean_distance":
        if position is None:
            return NONE
        return math.fsum(x * abs(position - j) for x, j in zip(p, keys, strict=True))
    if v < 2:
        return NONE
    if measure == "normalized_entropy":
        return entropy / math.log(v)
    assert measure == "gini"
    # Mean absolute difference form: half of it over the mean, then over its maximum 1 - 1/v.
    spread = math.fsum(abs(x - y) for x in p for y in p)
    return spread / (2 * v * v * (1 / v)) / (1 - 1 / v)
