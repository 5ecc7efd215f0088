"""Measures of attention: of one row, between heads, and across layers."""

from attncheck.metrics.catalogue import METRICS
from attncheck.metrics.metric import Metric, measure_layer
from attncheck.metrics.rows import row_measures

__all__ = [
    "METRICS",
    "Metric",
    "measure_layer",
    "row_measures",
]
