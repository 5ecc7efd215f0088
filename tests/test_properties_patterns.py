"""Every pattern: generators are valid, scores and names follow the heads and nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attncheck.attention import LayerAttention
from attncheck.checks import assert_causal, assert_row_stochastic
from attncheck.patterns import (
    NOISES,
    PATTERNS,
    PatternEvidence,
    classify_heads,
    collect_evidence,
    create_synthetic_attention,
)
from attncheck.strategies import (
    attention_layers,
    attention_shapes,
    attention_weights,
    pattern_options,
    token_sequences,
)
from tests.layer_changes import evened, padded, with_batch, with_heads

CREATED = sorted({*PATTERNS, "mixed", "heterogeneous"})
CAUSAL = [n for n in CREATED if n not in PATTERNS or PATTERNS[n].direction == "any"]
DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])
LAYERS = attention_layers(dtype=torch.float64)
SELF = attention_layers(shape=attention_shapes(min_length=2), dtype=torch.float64)
MASS = 1e-9


def masses(evidence: PatternEvidence) -> dict[str, list[float]]:
    """Mass, chance and lift of every pattern without a parameter to search for."""
    return {
        f"{name} {kind}": getattr(evidence, kind)(name).tolist()
        for name in evidence.names
        if PATTERNS[name].searched is None
        for kind in ("mass", "chance", "lift")
    }


def assert_same(one: dict[str, list[float]], other: dict[str, list[float]]) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert values == pytest.approx(other[name], abs=MASS, nan_ok=True), name


@pytest.mark.parametrize("noise", sorted(NOISES))
@pytest.mark.parametrize("pattern", CREATED)
@given(data=st.data())
@settings(max_examples=25)
def test_whatever_is_created_is_attention(pattern: str, noise: str, data: st.DataObject) -> None:
    causal = pattern in CAUSAL and data.draw(st.booleans(), label="causal")
    n = data.draw(st.one_of(st.integers(1, 40), st.sampled_from([64, 129])), label="seq_len")
    level = data.draw(st.sampled_from([0, 0.05, 0.2, 1.0]), label="noise_level")
    options = data.draw(pattern_options(pattern, n), label="options")
    weights = create_synthetic_attention(
        n,
        pattern,
        level,
        causal=causal,
        heads=2,
        noise=noise,  # type: ignore[arg-type]
        dtype=data.draw(DTYPES, label="dtype"),
        seed=0,
        **options,
    )
    assert weights.shape == (2, n, n)
    assert (weights >= 0).all()
    assert_row_stochastic(weights)
    if causal:
        assert_causal(weights)


@given(st.data(), LAYERS)
def test_permuting_heads_permutes_names_and_scores(
    data: st.DataObject, layer: LayerAttention
) -> None:
    order = data.draw(st.permutations(range(layer.n_heads)))
    before = masses(collect_evidence(layer))
    after = masses(collect_evidence(with_heads(layer, order)))
    assert_same(after, {name: [values[h] for h in order] for name, values in before.items()})
    labels = [label.label for label in classify_heads(layer)]
    renamed = [label.label for label in classify_heads(with_heads(layer, order))]
    assert renamed == [labels[h] for h in order]


@given(st.data(), LAYERS)
def test_permuting_the_batch_changes_no_score(data: st.DataObject, layer: LayerAttention) -> None:
    order = data.draw(st.permutations(range(layer.batch)))
    changed = collect_evidence(with_batch(layer, order))
    assert_same(masses(changed), masses(collect_evidence(layer)))


@given(SELF, st.integers(0, 3), st.integers(0, 3), st.data())
def test_padding_with_a_mask_changes_no_score(
    layer: LayerAttention, left: int, right: int, data: st.DataObject
) -> None:
    n = layer.n_key
    tokens = data.draw(token_sequences(min_length=n, max_length=n), label="tokens")
    wide = (-1,) * left + tuple(tokens) + (-1,) * right
    before = collect_evidence(layer, (tuple(tokens),) * layer.batch)
    after = collect_evidence(padded(layer, left, right), (wide,) * layer.batch)
    assert_same(masses(after), masses(before))


LABELLED = {
    "diagonal": {},
    "previous_token": {},
    "next_token": {},
    "offset": {"offset": 4},
    "local": {"width": 3, "decay": 0.8},
    "first_token": {},
    "broadcast": {"column": 5},
    "uniform": {},
    "block": {"cuts": (11, 19)},
    "heterogeneous": {},
}


@pytest.mark.parametrize(
    ("pattern", "causal"),
    [
        (pattern, causal)
        for pattern in LABELLED
        for causal in (False, True)
        if pattern in CAUSAL or not causal
    ],
)
@pytest.mark.parametrize(("left", "right"), [(0, 9), (6, 0), (3, 3)])
def test_padding_with_a_mask_keeps_the_name(
    pattern: str, causal: bool, left: int, right: int
) -> None:
    weights = create_synthetic_attention(
        30, pattern, 0.1, causal=causal, heads=2, batch=1, seed=3, **LABELLED[pattern]
    )
    layer = LayerAttention(weights, kind="self", causal=causal)
    expected = [label.label for label in classify_heads(layer)]
    assert expected == [pattern] * 2
    found = [label.label for label in classify_heads(padded(layer, left, right))]
    assert found == expected


@pytest.mark.parametrize("n_query", [28, 16, 10])
@pytest.mark.parametrize(
    "pattern", sorted(set(LABELLED) - {"next_token", "block", "heterogeneous"})
)
def test_a_key_value_cache_slice_keeps_the_name(pattern: str, n_query: int) -> None:
    weights = create_synthetic_attention(
        36, pattern, 0.1, causal=True, heads=2, batch=1, seed=5, **LABELLED[pattern]
    )
    layer = LayerAttention(weights, kind="self", causal=True)
    sliced = LayerAttention(weights[:, :, -n_query:], kind="self", causal=True)
    for whole in (layer, sliced):
        assert [label.label for label in classify_heads(whole)] == [pattern] * 2


@given(SELF, st.lists(st.integers(0, 10), min_size=2, max_size=2, unique=True), st.data())
def test_mixing_with_uniform_scales_every_lift(
    layer: LayerAttention, steps: list[int], data: st.DataObject
) -> None:
    n = layer.n_key
    tokens = data.draw(token_sequences(min_length=n, max_length=n), label="tokens")
    known = (tuple(tokens),) * layer.batch
    clean = collect_evidence(layer, known)
    for share in (step / 10 for step in steps):
        mixed = collect_evidence(evened(layer, share), known)
        for name in mixed.names:
            if PATTERNS[name].searched is None and name != "uniform":
                expected = (1 - share) * clean.lift(name)
                assert mixed.lift(name) == pytest.approx(expected, abs=1e-7, nan_ok=True), name


@pytest.mark.parametrize("pattern", ["previous_token", "first_token", "diagonal", "induction"])
@given(data=st.data())
@settings(max_examples=30)
def test_noise_takes_no_more_of_the_mass_than_it_may(pattern: str, data: st.DataObject) -> None:
    tokens = data.draw(token_sequences(min_length=4, start=0, repeated=True))
    n = len(tokens)
    weights = data.draw(
        attention_weights(
            pattern, shape=(1, 2, n, n), causal=True, noise=0.3, tokens=tokens, dtype=torch.float64
        )
    )
    layer = LayerAttention(weights, kind="self", causal=True)
    mass = collect_evidence(layer, (tuple(tokens),)).mass(pattern)
    assert (np.isnan(mass) | (mass >= 0.7 - 1e-9)).all()


@given(
    attention_weights(shape=(1, 2, 12, 12), causal=True, dtype=torch.float64),
    token_sequences(min_length=12, max_length=12),
)
def test_mass_is_what_a_plain_loop_adds_up(weights: torch.Tensor, tokens: list[int]) -> None:
    evidence = collect_evidence(LayerAttention(weights, kind="self", causal=True), (tuple(tokens),))
    selected = {
        "diagonal": lambda i, j: j == i,
        "previous_token": lambda i, j: j == i - 1,
        "first_token": lambda i, j: j == 0,
        "duplicate_token": lambda i, j: j < i and tokens[j] == tokens[i],
        "induction": lambda i, j: 0 < j < i and tokens[j - 1] == tokens[i],
    }
    for name, chosen in selected.items():
        for head in range(2):
            rows, chances = [], []
            for i in range(1, 12):
                keys = [j for j in range(i + 1) if chosen(i, j)]
                if keys and len(keys) <= i:
                    rows.append(math.fsum(float(weights[0, head, i, j]) for j in keys))
                    chances.append(len(keys) / (i + 1))
            expected = (np.mean(rows), np.mean(chances)) if rows else (math.nan, math.nan)
            found = (evidence.mass(name)[head], evidence.chance(name)[head])
            assert found == pytest.approx(expected, abs=1e-9, nan_ok=True), name
