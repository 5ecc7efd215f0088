"""`Metric`: one entry of the catalogue of row measures, and the walk that evaluates entries."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attncheck.attention import LayerAttention
from attncheck.metrics.blocks import RowBlock, row_blocks
from attncheck.metrics.rapid import measure_rapidly

__all__ = ["Metric", "measure_layer"]


@dataclass(frozen=True)
class Metric:
    """A measure that every query row has on its own.

    Attributes:
        name: What tables and messages call it.
        unit: ``"nats"``, ``"tokens"``, ``"keys"``, or ``"share"`` (0 to 1).
        summary: What it is, in one line.
        source: Where its definition comes from.
        reduce: How rows become the value of a head: their mean, or their maximum.
        measure: From a block of rows to values and which of them count.
        sorts: Whether it sorts every row, which costs more than all that do not. Profiles hold
            such a measure only on request.

    Example:
        >>> from attncheck.metrics import METRICS
        >>> METRICS["effective_keys"].unit, METRICS["row_sum_error"].reduce
        ('keys', 'max')
    """

    name: str
    unit: str
    summary: str
    source: str
    measure: Callable[[RowBlock], tuple[Tensor, Tensor]]
    reduce: Literal["mean", "max"] = "mean"
    sorts: bool = False

    def rows(self, layer: LayerAttention) -> tuple[Tensor, Tensor]:
        """Evaluate every row of a layer.

        Returns:
            Values, float64, NaN where the row has none, and which rows have one, bool; both
            ``(batch, head, query)`` on the device of the weights.
        """
        return measure_layer(layer, (self,))[self.name]


def measure_layer(
    layer: LayerAttention, metrics: Iterable[Metric]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Evaluate several metrics of a layer; by name, what `Metric.rows` returns.

    Those that sort are walked for on their own where the others come from one read in compiled
    loops, which costs a tenth of it.
    """
    metrics = tuple(metrics)
    in_one_read = [metric.name for metric in metrics if not metric.sorts]
    found = (measure_rapidly(layer, in_one_read) if in_one_read else None) or {}
    rest = [metric for metric in metrics if metric.name not in found]
    found |= measure_in_blocks(layer, rest) if rest else {}
    return {metric.name: found[metric.name] for metric in metrics}


def measure_in_blocks(
    layer: LayerAttention, metrics: Iterable[Metric]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Evaluate several metrics block by block of rows, whatever the weights are like."""
    metrics = tuple(metrics)
    shape, device = layer.weights.shape[:3], layer.weights.device
    found = {
        metric.name: (
            torch.empty(shape, dtype=torch.float64, device=device),
            torch.empty(shape, dtype=torch.bool, device=device),
        )
        for metric in metrics
    }
    for window, block in row_blocks(layer):
        for metric in metrics:
            values, valid = found[metric.name]
            values[window], valid[window] = metric.measure(block)
    for values, valid in found.values():
        values.masked_fill_(~valid, torch.nan)
    return found
