"""From evidence to labels: which part of a head comes first, and is it alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from attncheck.patterns import thresholds as t
from attncheck.patterns.components import Component, find_components
from attncheck.patterns.evidence import PatternEvidence
from attncheck.patterns.labels import HeadLabel, HeadLabels, PatternScore
from attncheck.patterns.search import best
from attncheck.patterns.sums import Array

__all__ = ["classify_evidence"]

SEARCHED: Final = ("offset", "local", "broadcast")

Named = tuple[float, str, str]
"""Strength, pattern, kind."""

Judged = tuple[str, float, tuple[PatternScore, ...], str]
"""Label, margin, ranked scores, note."""

NOT_FINITE: Final[Judged] = ("undetermined", 0.0, (), "NaN or infinite weights")


def classify_evidence(
    evidence: Sequence[PatternEvidence], heads: Sequence[Sequence[int]], layers: Sequence[int]
) -> HeadLabels:
    """Name the heads of some layers from their evidence alone.

    Args:
        evidence: One per layer.
        heads: Numbers of the heads in each.
        layers: Number of each layer.

    Example:
        >>> import torch
        >>> from attncheck.attention import LayerAttention
        >>> from attncheck.patterns import collect_evidence
        >>> held = collect_evidence(LayerAttention(torch.eye(12).expand(1, 2, 12, 12)))
        >>> classify_evidence([held], heads=[(0, 1)], layers=[3])
        HeadLabels(L3H0 diagonal, L3H1 diagonal)
    """
    labels: list[HeadLabel] = []
    for held, numbers, layer in zip(evidence, heads, layers, strict=True):
        finite = held.finite
        sound = held if finite.all() else held.select(np.flatnonzero(finite).tolist())
        named = iter(_classify_layer(sound)) if sound.n_heads else iter(())
        labels += [
            HeadLabel(layer, head, *(next(named) if good else NOT_FINITE))
            for head, good in zip(numbers, finite, strict=True)
        ]
    return HeadLabels(labels)


def _classify_layer(evidence: PatternEvidence) -> list[Judged]:
    """Name every head of one layer."""
    evidence = evidence.fitted()
    components = find_components(evidence)
    ranked = _rank(evidence, components)
    shares = _explained(components, evidence.n_heads)
    rest = _unevenness(evidence, shares), np.sum(shares, axis=0)
    decided = [_decide(evidence, components, rest, head) for head in range(evidence.n_heads)]
    return [
        (name, margin, scores, note)
        for (name, margin, note), scores in zip(decided, ranked, strict=True)
    ]


def _explained(components: list[Component], heads: int) -> list[Array]:
    """Strengths of the real parts of each head; tokens and positions may be the same attention."""
    parts = [np.where(c.real, c.strength, 0) for c in components if c.kind != "token"]
    token = [np.where(c.real, c.strength, 0) for c in components if c.kind == "token"]
    total = np.sum(parts, axis=0) if parts else np.zeros(heads)
    best_token = np.max(token, axis=0) if token else np.zeros(heads)
    shares = [np.where(best_token > total, 0, part) for part in parts]
    shares.append(np.where(best_token > total, best_token, 0))
    too_much = np.maximum(np.sum(shares, axis=0) / 0.98, 1)
    return [share / too_much for share in shares]


def _unevenness(evidence: PatternEvidence, shares: list[Array]) -> Array:
    """Nats by which the entropy of what the real parts leave lies below that of even attention."""
    rows = np.maximum(evidence.rows, 1)
    entropy, capacity = evidence.entropy / rows, evidence.capacity / rows
    rest = 1 - np.sum(shares, axis=0)
    own = -sum(share * np.log(np.maximum(share, 1e-12)) for share in [*shares, rest])
    return np.asarray(capacity - (entropy - own) / rest)


def _decide(
    evidence: PatternEvidence, components: list[Component], rest: tuple[Array, Array], head: int
) -> tuple[str, float, str]:
    """Return label, margin and note of one head."""
    usable = evidence.rows[head] / max(1.0, evidence.sequences[head])
    if usable < t.MIN_POSITIONS - evidence.causal:  # a first causal row sees but itself
        return "undetermined", 0.0, f"{usable:g} usable rows, {t.MIN_POSITIONS} positions needed"
    found: list[Named] = [
        (float(c.strength[head]), str(c.names[head]), c.kind) for c in components if c.real[head]
    ]
    found.sort(reverse=True)
    resting = {
        str(c.names[head]): float(c.resting[head]) for c in components if c.resting is not None
    }
    found = _prefer_tokens(found, resting)
    capacity = evidence.capacity[head] / max(1.0, evidence.rows[head])
    border = min(t.UNEVEN, t.UNEVEN_SHARE * capacity)
    uneven, explained = float(rest[0][head]), float(rest[1][head])
    rest_uneven = uneven > border
    very = uneven > 2 * border
    least = t.MIN_BESIDE_VERY_UNEVEN if very else t.MIN_BESIDE_UNEVEN
    if found and rest_uneven and explained < least:
        found = []
    if not found:
        name = "heterogeneous" if rest_uneven else "uniform"
        return name, abs(uneven - border), ""
    strength, name, kind = found[0]
    others = [other for other in found[1:] if other[2] != kind]
    if not others:
        return name, strength, ""
    second, other_name, _ = others[0]
    if second >= t.MIN_MIXED and second >= t.MIXED_RATIO * strength:
        return "mixed", strength - second, f"{name} {strength:.2f}, {other_name} {second:.2f}"
    return name, strength - second, ""


def _prefer_tokens(found: list[Named], resting: Mapping[str, float]) -> list[Named]:
    """Let a pattern of tokens explain the diagonals and columns it looks like.

    Rows without a target say nothing about it, and heads rest on the first key there: how strong
    the first key is, is asked in the rows with a target.
    """
    tokens = [named for named in found if named[2] == "token"]
    if not tokens:
        return found
    best_token = tokens[0]

    def against(named: Named) -> float:
        return min(named[0], resting[best_token[1]]) if named[2] == "first" else named[0]

    explained = [
        named
        for named in found
        if named[2] != "token" and against(named) * t.TOKEN_OVER_OFFSET <= best_token[0]
    ]
    return [best_token, *(n for n in found if n not in explained and n is not best_token)]


def _rank(evidence: PatternEvidence, components: list[Component]) -> list[tuple[PatternScore, ...]]:
    """Score every pattern on every head, strongest first."""
    strengths = {name: np.zeros(evidence.n_heads) for name in evidence.names}
    for found in components:
        for name in set(found.names):
            if name in strengths:
                held = np.where(found.names == name, found.strength, 0)
                strengths[name] = np.maximum(strengths[name], np.maximum(held, 0))
    taken = np.max([v for k, v in strengths.items() if k != "uniform"], axis=0)
    strengths["uniform"] = np.maximum(0, 1 - taken)
    table = {
        name: (evidence.mass(name), evidence.chance(name), evidence.lift(name))
        for name in evidence.names
    }
    parameter = {name: best(evidence, name)[1] for name in SEARCHED if name in evidence.names}
    return [
        tuple(
            sorted(
                (
                    PatternScore(
                        name,
                        float(table[name][0][head]),
                        float(table[name][1][head]),
                        float(table[name][2][head]),
                        float(strengths[name][head]),
                        int(parameter[name][head]) if name in parameter else None,
                    )
                    for name in evidence.names
                ),
                key=lambda score: -score.strength,
            )
        )
        for head in range(evidence.n_heads)
    ]
