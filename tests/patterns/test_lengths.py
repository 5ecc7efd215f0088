"""Sequences of several lengths: what their merged evidence knows, and that names survive."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import reduce
from itertools import permutations

import numpy as np
import pytest
import torch

from attncheck.attention import LayerAttention
from attncheck.patterns import (
    PatternEvidence,
    classify_evidence,
    collect_evidence,
    create_synthetic_attention,
)
from attncheck.patterns.spans import Spans

LENGTHS = (12, 17, 24, 40)
OPTIONS: dict[str, dict[str, object]] = {
    "diagonal": {},
    "previous_token": {},
    "offset": {"offset": 3},
    "local": {"width": 3, "decay": 0.8},
    "first_token": {},
    "broadcast": {"column": 5},
    "block": {"cuts": (6,)},
    "uniform": {},
    "mixed": {},
    "heterogeneous": {},
}


def layer(pattern: str, n: int, causal: bool, heads: int = 2) -> LayerAttention:
    weights = create_synthetic_attention(
        n, pattern, 0.1, causal=causal, heads=heads, batch=1, seed=n, **OPTIONS[pattern]
    )
    return LayerAttention(weights, causal=causal)


def padded(held: LayerAttention, left: int, right: int) -> LayerAttention:
    weights = torch.nn.functional.pad(held.weights, (left, right) * 2)
    seen = torch.nn.functional.pad(torch.ones(held.n_key, dtype=torch.bool), (left, right))
    return LayerAttention(weights, causal=held.causal, mask=seen[None, None, None])


def names(evidence: PatternEvidence) -> list[str]:
    heads = range(evidence.n_heads)
    return [label.label for label in classify_evidence([evidence], [heads], [0])]


def merged(parts: list[PatternEvidence]) -> PatternEvidence:
    return reduce(PatternEvidence.merge, parts)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pattern", OPTIONS)
def test_sequences_of_several_lengths_keep_the_name(pattern: str, causal: bool) -> None:
    parts = [collect_evidence(layer(pattern, n, causal)) for n in LENGTHS]
    assert names(merged(parts)) == [pattern] * 2
    assert names(merged(parts * 3)) == [pattern] * 2


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pattern", OPTIONS)
def test_padded_and_cut_sequences_keep_the_name(pattern: str, causal: bool) -> None:
    parts = [
        collect_evidence(layer(pattern, 24, causal)),
        collect_evidence(padded(layer(pattern, 16, causal), 5, 0)),
        collect_evidence(padded(layer(pattern, 33, causal), 0, 7)),
    ]
    if causal and pattern != "block":
        held = layer(pattern, 40, causal)
        parts.append(collect_evidence(LayerAttention(held.weights[:, :, -15:], causal=True)))
    assert names(merged(parts)) == [pattern] * 2


def test_the_order_of_merging_does_not_matter() -> None:
    parts = [collect_evidence(layer("first_token", n, True)) for n in (9, 14, 9, 20)]
    expected = asdict(merged(parts))
    a, b, c, d = parts
    others = [merged(list(order)) for order in permutations(parts)] + [a.merge(b).merge(c.merge(d))]
    for other in map(asdict, others):
        np.testing.assert_array_equal(other["spans"]["bounds"], expected["spans"]["bounds"])
        np.testing.assert_array_equal(other["spans"]["count"], expected["spans"]["count"])
        np.testing.assert_allclose(other["offsets"]["mass"], expected["offsets"]["mass"])
        np.testing.assert_allclose(other["columns"]["mass"], expected["columns"]["mass"])
    assert expected["spans"]["bounds"].tolist() == [[1, 9, 9], [1, 14, 14], [1, 20, 20]]
    assert expected["spans"]["count"].tolist() == [[2, 1, 1]] * 2


def lengths_of(causal: bool) -> tuple[Spans, list[tuple[int, int, int]], int, int]:
    """Spans of a cut and of padded sequences, and (row, key, head) of every visible cell."""
    parts, cells = [], []
    for n, rows, left, right in ((7, 7, 0, 0), (11, 11, 2, 3), (9, 4, 0, 0), (11, 11, 2, 3)):
        total = left + n + right
        held = torch.full((1, 2, total, total), 1 / total)[:, :, total - rows - left - right :]
        seen = torch.zeros(total, dtype=torch.bool)
        seen[left : left + n] = True
        made = LayerAttention(held, causal=causal, mask=seen[None, None, None])
        parts.append(collect_evidence(made).spans)
        for p in range(n - rows, n):
            if not (causal and p == 0):
                cells += [(p, c, 0) for c in range(n if not causal else p + 1)]
    zero = 0 if causal else 10
    return reduce(Spans.merge, parts), cells, zero, 11 + zero


@pytest.mark.parametrize("causal", [False, True])
def test_columns_meet_diagonals_as_often_as_counted(causal: bool) -> None:
    spans, cells, zero, size = lengths_of(causal)
    assert spans.sequences.tolist() == [4, 4]
    profile = np.random.default_rng(1).random((2, size))
    expected = np.zeros((11, size))
    for p, c, _ in cells:
        expected[c, p - c + zero] += 1
    for c in range(11):
        found = spans.on_diagonals(np.array([c, 10 - c]), zero, size)
        np.testing.assert_array_equal(found, expected[[c, 10 - c]])
    found = spans.on_columns(profile, zero, 11)
    np.testing.assert_allclose(found, profile @ expected.T)


def test_heads_that_see_different_keys_have_spans_of_their_own() -> None:
    mask = torch.ones(1, 2, 1, 10, dtype=torch.bool)
    mask[:, 1, :, :4] = False
    weights = (mask / mask.sum(-1, keepdim=True)).expand(1, 2, 10, 10)
    spans = collect_evidence(LayerAttention(weights, mask=mask)).spans
    assert spans.bounds.tolist() == [[0, 6, 6], [0, 10, 10]]
    assert spans.count.tolist() == [[0, 1], [1, 0]]
    assert spans.select([1]).bounds.tolist() == [[0, 6, 6]]
    assert spans.select([1]).count.tolist() == [[1]]


def test_evidence_of_nothing() -> None:
    evidence = collect_evidence(LayerAttention(torch.zeros(1, 2, 9, 9)))
    assert evidence.sequences.tolist() == [0, 0]
    again = PatternEvidence.from_dict(json.loads(json.dumps(evidence.to_dict())))
    assert again.spans.count.shape == (2, 0)
    assert names(again) == ["undetermined"] * 2
    some = collect_evidence(layer("diagonal", 9, False))
    assert names(again.merge(some)) == ["diagonal"] * 2


def test_evidence_of_many_heads_stays_small_on_disk() -> None:
    weights = torch.softmax(torch.randn(1, 36, 256, 256, generator=torch.Generator()) * 2, -1)
    evidence = collect_evidence(LayerAttention(weights.tril() / weights.tril().sum(-1)[..., None]))
    text = json.dumps(evidence.to_dict(), separators=(",", ":"))
    assert len(text) < 12 * 2 * 36 * 511  # 12 bytes per line for mass and variance
    again = PatternEvidence.from_dict(json.loads(text))
    for name in ("mass", "chance", "rows"):
        np.testing.assert_array_equal(getattr(again.offsets, name), getattr(evidence.offsets, name))
        np.testing.assert_array_equal(getattr(again.columns, name), getattr(evidence.columns, name))
    np.testing.assert_allclose(again.offsets.variance, evidence.offsets.variance, rtol=1e-7)
    assert names(again) == names(evidence)
