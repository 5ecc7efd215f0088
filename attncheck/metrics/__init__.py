"""Measures of attention: of one row, between heads, and across layers."""

from attncheck.metrics.catalogue import METRICS
from attncheck.metrics.flow import attention_flow
from attncheck.metrics.metric import Metric, measure_layer
from attncheck.metrics.paired import HeadDistance, paired_distance
from attncheck.metrics.rollout import attention_rollout
from attncheck.metrics.rows import row_measures
from attncheck.metrics.similarity import (
    HeadRedundancy,
    HeadSimilarity,
    head_redundancy,
    head_similarity,
)
from attncheck.metrics.statistics import compute_attention_statistics

__all__ = [
    "METRICS",
    "HeadDistance",
    "HeadRedundancy",
    "HeadSimilarity",
    "Metric",
    "attention_flow",
    "attention_rollout",
    "compute_attention_statistics",
    "head_redundancy",
    "head_similarity",
    "measure_layer",
    "paired_distance",
    "row_measures",
]
