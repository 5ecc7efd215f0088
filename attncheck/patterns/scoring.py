"""The public questions: how well does each pattern fit, and what is this head called."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from attncheck.attention import AttentionLike, as_attention
from attncheck.patterns.classify import classify_evidence
from attncheck.patterns.collect import collect_evidence
from attncheck.patterns.labels import HeadLabel, HeadLabels, PatternScore

__all__ = ["classify_heads", "identify_attention_pattern", "pattern_scores"]


def classify_heads(
    attention: AttentionLike,
    *,
    tokens: Any = None,
    mask: Any = None,
    causal: bool | None = None,
    segment_ids: Any = None,
    delimiters: Collection[Any] | None = None,
) -> HeadLabels:
    """Name every head."""
    maps = as_attention(attention, tokens=tokens, mask=mask, causal=causal)
    evidence = [
        collect_evidence(
            layer,
            None if layer.kind == "cross" else maps.tokens,
            segment_ids=segment_ids,
            delimiters=delimiters,
        )
        for layer in maps.layers
    ]
    return classify_evidence(
        evidence, [layer.heads for layer in maps.layers], [layer.index for layer in maps.layers]
    )


def identify_attention_pattern(
    attention: AttentionLike, *, tokens: Any = None, mask: Any = None, causal: bool | None = None
) -> str:
    """Name the pattern of one head."""
    return _one(classify_heads(attention, tokens=tokens, mask=mask, causal=causal)).label


def pattern_scores(
    attention: AttentionLike, *, tokens: Any = None, mask: Any = None, causal: bool | None = None
) -> dict[str, PatternScore]:
    """Score every pattern on one head: mass, chance, lift, strength; strongest first."""
    label = _one(classify_heads(attention, tokens=tokens, mask=mask, causal=causal))
    return {score.pattern: score for score in label.ranked}


def _one(labels: HeadLabels) -> HeadLabel:
    if len(labels) != 1:
        raise ValueError(
            f"attention: holds {len(labels)} heads; one is expected here. Use classify_heads, or "
            "pick a head first: attention[layer][batch, head]"
        )
    return labels[0]
