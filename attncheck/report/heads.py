"""From a profile to the heads of a page."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from attncheck.checks.text import safe
from attncheck.metrics import METRICS
from attncheck.patterns import HeadLabel, HeadLabels
from attncheck.profile import HeadProfile, LayerProfile
from attncheck.report.entries import HeadEntry, MapEntry, ModelEntry
from attncheck.report.heatmaps import Heatmap

__all__ = ["describe_model", "measures_of", "plain"]


def describe_model(
    name: str,
    profile: HeadProfile,
    heatmaps: Mapping[str, Sequence[Heatmap]] | None = None,
    *,
    tokens: Sequence[str | int] | None = None,
    facts: Sequence[tuple[str, str]] = (),
    captions: Sequence[str] = (),
    failed: Collection[str] = (),
    labels: HeadLabels | None = None,
) -> ModelEntry:
    """Describe a model for a page.

    Args:
        name: What to call it.
        profile: Measures of its heads.
        heatmaps: By name of the head; a comparison has two of each.
        tokens: Of the prompt that the heatmaps show.
        facts: Label and text, shown before those that the profile knows.
        captions: What each of several heatmaps is.
        failed: Names of heads that break a rule.
        labels: Of the profile, if known already.

    Example:
        >>> import torch
        >>> from attncheck import profile_attention
        >>> entry = describe_model("a copy", profile_attention(torch.eye(12)))
        >>> entry["heads"][0]["name"], entry["heads"][0]["label"]
        ('L0H0', 'diagonal')
    """
    maps = heatmaps or {}
    labels = profile.classify() if labels is None else labels
    measured = [row for layer in profile.layers for row in measures_of(layer)]
    return {
        "name": safe(name),
        "facts": [[safe(key), safe(text)] for key, text in (*facts, *_facts(profile))],
        "captions": [safe(caption) for caption in captions],
        "tokens": None if tokens is None else [safe(str(token)) for token in tokens],
        "layers": {str(layer.index): safe(layer.name) for layer in profile.layers},
        "heads": [
            _head(
                label,
                measures,
                [heatmap.to_dict() for heatmap in maps.get(label.name, ())],
                label.name in failed,
            )
            for label, measures in zip(labels, measured, strict=True)
        ],
        "tests": [],
    }


def measures_of(layer: LayerProfile) -> list[list[float | None]]:
    """Return the values of `METRICS`, in order, for each head of a layer."""
    columns = [layer.value(name) if name in layer.sums else None for name in METRICS]
    return [
        [None if column is None else plain(float(column[head])) for column in columns]
        for head in range(layer.n_heads)
    ]


def plain(value: float) -> float | None:
    """Round to five digits for JSON; what is no finite number is None.

    Example:
        >>> plain(1 / 3), plain(math.nan)
        (0.33333, None)
    """
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _head(
    label: HeadLabel, measures: list[float | None], maps: list[MapEntry], failed: bool
) -> HeadEntry:
    scores: list[list[Any]] = [
        [s.pattern, s.parameter, *map(plain, (s.mass, s.chance, s.lift, s.strength))]
        for s in label.ranked
    ]
    return {
        "name": label.name,
        "layer": label.layer,
        "head": label.head,
        "label": label.label,
        "margin": plain(label.margin),
        "note": label.note,
        "scores": scores,
        "measures": measures,
        "maps": maps,
        "failed": failed,
    }


def _facts(profile: HeadProfile) -> list[tuple[str, str]]:
    """What the profile itself knows of the model."""
    layers = profile.layers
    heads = sum(layer.n_heads for layer in layers)
    listed = [
        ("layers", str(len(layers))),
        ("heads", str(heads)),
        ("dtype of the weights", _set(layer.dtype for layer in layers)),
        ("computed by", _set(layer.backend for layer in layers)),
        ("kind", _set(_kind(layer) for layer in layers)),
    ]
    if any(layer.n_kv_heads != layer.n_heads for layer in layers):
        listed.append(("key-value heads per layer", _set(str(x.n_kv_heads) for x in layers)))
    return listed


def _kind(layer: LayerProfile) -> str:
    kind = "" if layer.kind == "unknown" else f"{layer.kind}-attention, "
    return kind + ("causal" if layer.causal else "not causal")


def _set(words: Any) -> str:
    return ", ".join(dict.fromkeys(words))
