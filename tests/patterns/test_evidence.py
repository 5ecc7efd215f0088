"""Evidence: sums that a plain loop reproduces, that add up, and survive JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attncheck.attention import LayerAttention
from attncheck.patterns import PatternEvidence, collect_evidence, create_synthetic_attention

TOKENS = [1, 2, 3, 1, 2, 3, 1, 4, 5, 1]


def random_layer(
    seed: int, batch: int = 2, heads: int = 3, n: int = 10, causal: bool = False
) -> LayerAttention:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(batch, heads, n, n, generator=generator, dtype=torch.float64) * 2
    if causal:
        scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf)
    return LayerAttention(scores.softmax(-1), causal=causal)


def by_loop(layer: LayerAttention, selects: object) -> tuple[np.ndarray, np.ndarray]:
    """Mass and chance of a relation, position by position, in float64."""
    visible = layer.visible().expand(layer.weights.shape)
    mass, chance, rows = (np.zeros(layer.n_heads) for _ in range(3))
    for b in range(layer.batch):
        for h in range(layer.n_heads):
            for i in range(layer.n_query):
                position = i + layer.n_key - layer.n_query
                seen = [j for j in range(layer.n_key) if visible[b, h, i, j]]
                chosen = [j for j in seen if selects(position, j)]  # type: ignore[operator]
                if len(seen) >= 2 and chosen:
                    mass[h] += sum(float(layer.weights[b, h, i, j]) for j in chosen)
                    chance[h] += len(chosen) / len(seen)
                    rows[h] += 1
    return mass / rows, chance / rows


@pytest.mark.parametrize("causal", [False, True])
def test_masses_equal_a_plain_loop(causal: bool) -> None:
    layer = random_layer(0, causal=causal)
    evidence = collect_evidence(layer, TOKENS, segment_ids=[0] * 4 + [1] * 6, delimiters=[4, 5])
    relations = {
        "diagonal": lambda i, j: i == j,
        "previous_token": lambda i, j: j == i - 1,
        "first_token": lambda i, j: j == 0,
        "block": lambda i, j: (i < 4) == (j < 4),
        "delimiter": lambda i, j: j in (7, 8),
        "duplicate_token": lambda i, j: j < i and TOKENS[i] == TOKENS[j],
        "induction": lambda i, j: 1 <= j < i and TOKENS[j - 1] == TOKENS[i],
    }
    if not causal:
        relations["next_token"] = lambda i, j: j == i + 1
    for name, selects in relations.items():
        mass, chance = by_loop(layer, selects)
        np.testing.assert_allclose(evidence.mass(name), mass, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(evidence.chance(name), chance, atol=1e-12, err_msg=name)
        expected = (mass - chance) / (1 - chance)
        np.testing.assert_allclose(evidence.lift(name), expected, atol=1e-12, err_msg=name)


def test_uniform_attention_is_at_chance_everywhere() -> None:
    visible = torch.ones(10, 10).tril()
    layer = LayerAttention((visible / visible.sum(-1, keepdim=True))[None, None], causal=True)
    evidence = collect_evidence(layer, TOKENS)
    for name in evidence.names:
        expected = 1 if name == "uniform" else 0
        assert evidence.lift(name)[0] == pytest.approx(expected, abs=1e-6), name


def test_harmonic_chance_levels() -> None:
    n = 12
    harmonic = np.cumsum(1 / np.arange(1, n + 1))[-1]
    layer = LayerAttention(create_synthetic_attention(n, causal=True)[None, None], causal=True)
    chance = collect_evidence(layer).chance("previous_token")[0]
    assert chance == pytest.approx((harmonic - 1) / (n - 1))


def test_closed_example_of_the_field() -> None:
    """The mass of the previous-token diagonal over all mass is 1.3 / 4 in this known example."""
    weights = torch.tensor(
        [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.2, 0.3, 0.5, 0], [0.1, 0.15, 0.5, 0.25]]
    )
    sums = collect_evidence(LayerAttention(weights[None, None], causal=True)).sums("previous_token")
    assert sums.mass[0] / 4 == pytest.approx(0.325)
    assert sums.rows[0] == 3


def require_equal(left: PatternEvidence, right: PatternEvidence) -> None:
    def compare(a: object, b: object, path: str) -> None:
        if isinstance(a, dict):
            assert isinstance(b, dict)
            assert a.keys() == b.keys(), path
            for key in a:
                compare(a[key], b[key], f"{path}.{key}")
        else:
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9, err_msg=path)  # type: ignore[arg-type]

    compare(asdict(left), asdict(right), "")


@given(seed=st.integers(0, 99), cut=st.integers(1, 3), causal=st.booleans())
def test_a_batch_is_the_merge_of_its_parts(seed: int, cut: int, causal: bool) -> None:
    layer = random_layer(seed, batch=4, causal=causal)
    parts = [
        collect_evidence(replace(layer, weights=layer.weights[part]), TOKENS)
        for part in (slice(None, cut), slice(cut, None))
    ]
    require_equal(collect_evidence(layer, TOKENS), parts[0].merge(parts[1]))


def test_different_lengths_merge() -> None:
    short, long = random_layer(1, 1, n=6), random_layer(2, 1, n=10)
    for merged in (
        collect_evidence(short).merge(collect_evidence(long)),
        collect_evidence(long).merge(collect_evidence(short)),
    ):
        assert merged.rows.tolist() == [16] * 3
        expected = collect_evidence(short).sums("next_token").mass
        expected = expected + collect_evidence(long).sums("next_token").mass
        np.testing.assert_allclose(merged.sums("next_token").mass, expected)
        assert merged.columns.rows[0].tolist() == [16] * 6 + [10] * 4


def test_json_round_trip_is_exact() -> None:
    evidence = collect_evidence(random_layer(3), TOKENS)
    again = PatternEvidence.from_dict(json.loads(json.dumps(evidence.to_dict())))
    assert again.to_dict() == evidence.to_dict()
    assert again.names == evidence.names
    cross = collect_evidence(LayerAttention(random_layer(3).weights[:, :, :4]))
    assert PatternEvidence.from_dict(cross.to_dict()).to_dict() == cross.to_dict()
    with pytest.raises(ValueError, match="lacks rows"):
        PatternEvidence.from_dict({})


def test_merging_strangers_is_refused() -> None:
    evidence = collect_evidence(random_layer(3))
    with pytest.raises(ValueError, match="n_heads is 2"):
        evidence.merge(collect_evidence(random_layer(3, heads=2)))
    with pytest.raises(ValueError, match="give tokens and segments with every part"):
        evidence.merge(collect_evidence(random_layer(3), TOKENS))


def test_select_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = random_layer(5, batch=3, heads=4)
    whole = collect_evidence(layer, TOKENS)
    monkeypatch.setattr("attncheck.patterns.collect.CHUNK", 250)
    require_equal(collect_evidence(layer, TOKENS), whole)
    alone = collect_evidence(replace(layer, weights=layer.weights[:, 2:3], heads=(2,)), TOKENS)
    require_equal(whole.select([2]), alone)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_with_a_mask_changes_nothing(side: str) -> None:
    layer = random_layer(7, batch=1, n=9)
    pad = (3, 0, 3, 0) if side == "left" else (0, 3, 0, 3)
    weights = torch.nn.functional.pad(layer.weights, pad)
    seen = torch.nn.functional.pad(torch.ones(9, dtype=torch.bool), pad[:2])
    weights[:, :, ~seen] = 1 / 12  # rows of padding hold something; nobody may read it
    padded = LayerAttention(weights, mask=seen[None, None, None])
    plain, other = collect_evidence(layer), collect_evidence(padded)
    for name in ("diagonal", "next_token", "local", "first_token", "broadcast", "block", "uniform"):
        np.testing.assert_allclose(other.lift(name), plain.lift(name), atol=1e-9, err_msg=name)
    assert other.rows.tolist() == plain.rows.tolist()


def test_hidden_keys_are_left_out() -> None:
    weights = create_synthetic_attention(8, "next_token", 0, heads=1)[None]
    evidence = collect_evidence(LayerAttention(weights, causal=True))
    last_row_is_even = (1 / 8) / 7
    assert evidence.mass("diagonal")[0] == pytest.approx(last_row_is_even)
    with pytest.raises(ValueError, match="cannot be scored here"):
        evidence.mass("next_token")
    with pytest.raises(ValueError, match="is a verdict"):
        evidence.mass("mixed")
    with pytest.raises(ValueError, match="needs tokens: pass tokens=, strings or ids"):
        evidence.mass("induction")
    with pytest.raises(ValueError, match="needs delimiters: pass tokens= as strings, or"):
        evidence.mass("delimiter")
    with pytest.raises(ValueError, match="needs later keys, which causal attention does not see"):
        evidence.mass("next_token")


def test_cross_attention_has_no_distances() -> None:
    layer = LayerAttention(torch.rand(1, 2, 5, 9).softmax(-1), kind="cross")
    evidence = collect_evidence(layer, TOKENS)
    assert evidence.names == ("first_token", "broadcast", "uniform")
    with pytest.raises(ValueError, match="needs positions that queries and keys share"):
        evidence.mass("diagonal")
    with pytest.raises(ValueError, match="needs positions that queries and keys share"):
        evidence.mass("induction")


def test_wrong_lengths_are_named() -> None:
    layer = random_layer(0)
    with pytest.raises(ValueError, match="tokens: 2 entries for 10 keys"):
        collect_evidence(layer, [1, 2])
    with pytest.raises(ValueError, match="segment_ids: 3 sequences for a batch of 2"):
        collect_evidence(layer, segment_ids=[[0] * 10] * 3)
    with pytest.raises(ValueError, match="tokens: got one string"):
        collect_evidence(layer, "a sentence")
    with pytest.raises(ValueError, match="pass both"):
        collect_evidence(layer, delimiters=["."])


def test_delimiters_are_a_collection_of_tokens() -> None:
    layer, words = random_layer(0), list("ab.cd.ef.g")
    with pytest.raises(TypeError, match="delimiters: got 3; expected a collection of tokens"):
        collect_evidence(layer, words, delimiters=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"one string 'ab'; .*: pass \['ab'\]"):
        collect_evidence(layer, words, delimiters="ab")
    with pytest.raises(ValueError, match="delimiters: are ids, but tokens are strings"):
        collect_evidence(layer, words, delimiters=[3])
    with pytest.raises(ValueError, match="delimiters: are strings, but tokens are ids"):
        collect_evidence(layer, TOKENS, delimiters=["."])
    with pytest.raises(TypeError, match="expected a collection"):
        collect_evidence(layer, words, delimiters=[["."]])
    as_tensor = collect_evidence(layer, TOKENS, delimiters=torch.tensor([4, 5]))  # type: ignore[arg-type]
    listed = collect_evidence(layer, TOKENS, delimiters=[4, 5])
    assert as_tensor.mass("delimiter").tolist() == listed.mass("delimiter").tolist()
    assert as_tensor.mass("delimiter").max() > 0
