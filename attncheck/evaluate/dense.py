"""The dense evaluator: profiles from given weights, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from attncheck.attention import LayerAttention
from attncheck.attention.arguments import words
from attncheck.evaluate.assemble import describe
from attncheck.evaluate.measures import Totals
from attncheck.metrics import METRICS, Metric, measure_layer
from attncheck.patterns import collect_evidence
from attncheck.profile import LayerProfile

__all__ = ["profile_layer"]


def profile_layer(
    layer: LayerAttention,
    tokens: Any = None,
    *,
    segment_ids: Any = None,
    delimiters: Collection[Any] | None = None,
    also: Collection[str] = (),
) -> LayerProfile:
    """Profile the heads of one layer from its weights.

    Args:
        layer: Weights ``(batch, head, query, key)`` with mask and causality.
        tokens: Strings or ids, ``(key,)`` or ``(batch, key)``; with them token patterns
            (induction, duplicate token, delimiter) are scored. Cross-attention ignores them.
        segment_ids: Segment of each key, ``(key,)`` or ``(batch, key)``.
        delimiters: Tokens that count as delimiters; default: punctuation and separators.
        also: Measures to add that a profile leaves out because they sort every row: ``"gini"``.

    Raises:
        ValueError: Tokens or segments of the wrong length, or ``also`` names no measure.

    Example:
        >>> import torch
        >>> profile = profile_layer(LayerAttention(torch.eye(8)[None, None]))
        >>> profile.value("max_weight"), profile.counts["entropy"]
        (array([1.]), array([8]))
    """
    measured = measure_layer(layer, _chosen(also))
    crosses = layer.kind == "cross"
    evidence = collect_evidence(
        layer,
        None if crosses else tokens,
        segment_ids=None if crosses else segment_ids,
        delimiters=delimiters,
    )
    return describe(layer, Totals.of_all(measured), evidence)


def _chosen(also: Collection[str]) -> list[Metric]:
    """Every metric that does not sort, and those asked for."""
    wanted = set(words(also, "also", "names of measures"))
    unknown = sorted(wanted - set(METRICS))
    if unknown:
        on_request = ", ".join(name for name, metric in METRICS.items() if metric.sorts)
        raise ValueError(f"also: no measure {unknown[0]!r}; on request there is {on_request}")
    return [m for name, m in METRICS.items() if not m.sorts or name in wanted]
