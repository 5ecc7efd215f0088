"""`METRICS`: the catalogue of row measures."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from attncheck.metrics import measures
from attncheck.metrics.metric import Metric

__all__ = ["METRICS"]

_ENTRIES = (
    Metric(
        "row_sum_error",
        "share",
        "how far a row (with its learned sink) is from summing to 1; the worst row",
        "definition of softmax; Vaswani et al. 2017, eq. 1",
        measures.row_sum_error,
        reduce="max",
    ),
    Metric(
        "entropy",
        "nats",
        "entropy of a row over its visible keys",
        "Shannon 1948; for heads, Clark et al. 2019, sec. 3.3",
        measures.entropy,
    ),
    Metric(
        "normalized_entropy",
        "share",
        "entropy / log(visible keys), rows with two or more: 1 is uniform, 0 is one key",
        "Pielou 1966 (evenness)",
        measures.normalized_entropy,
    ),
    Metric(
        "effective_keys",
        "keys",
        "exp(entropy): as many equally weighted keys would have the same entropy",
        "Hill 1973, order 1 (perplexity)",
        measures.effective_keys,
    ),
    Metric(
        "max_weight",
        "share",
        "the largest weight of a row (confidence)",
        "Voita et al. 2019 (confidence, there without the end-of-sequence key)",
        measures.max_weight,
    ),
    Metric(
        "participation_ratio",
        "keys",
        "1 / sum of squared weights: effective keys that forgive small weights",
        "Hill 1973, order 2 (inverse Simpson index)",
        measures.participation_ratio,
    ),
    Metric(
        "gini",
        "share",
        "Gini coefficient over visible keys / its maximum 1 - 1/v: 0 is uniform, 1 is one key",
        "Gini 1912, with the small-sample correction v / (v - 1)",
        measures.gini,
        sorts=True,
    ),
    Metric(
        "mean_distance",
        "tokens",
        "mean distance from a query to the keys it attends to",
        "Dosovitskiy et al. 2021, sec. 4.5 (there in pixels)",
        measures.mean_distance,
    ),
    Metric(
        "sink_mass",
        "share",
        "mass on the first visible key and a learned sink; queries behind that key that see either",
        "Gu et al. 2024 (their alpha_1 also counts the first query, which sees nothing else)",
        measures.sink_mass,
    ),
    Metric(
        "future_mass",
        "share",
        "mass on keys behind the query's own position; 0 in a causal head",
        "definition of causal attention; Vaswani et al. 2017, sec. 3.2.3",
        measures.future_mass,
    ),
)

METRICS: Final[Mapping[str, Metric]] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
"""Every row measure by name, read-only."""
