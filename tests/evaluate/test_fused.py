"""Compiled loops against the float64 dense reference, and what chooses them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings

from attncheck import profile_attention
from attncheck.attention import LayerAttention, QueryKey
from attncheck.evaluate import choose, dispatch, products, profile_given, profile_layer
from attncheck.evaluate.blocked import profile_blocked
from attncheck.evaluate.dense import profile_layer as profile_dense
from attncheck.evaluate.fused import walk_fused
from attncheck.evaluate.reach import reach_of
from attncheck.patterns import create_synthetic_attention
from attncheck.patterns.grid import Marks
from attncheck.profile import LayerProfile
from tests.evaluate.agreement import Drawn, assert_agree, layers, with_weights

pytest.importorskip("numba")


def _fused(layer: LayerAttention, tokens: Any = None, **options: Any) -> LayerProfile:
    return profile_blocked(layer, tokens, fused=True, **options)


def _in_float32(layer: LayerAttention) -> LayerAttention:
    held = with_weights(layer)
    sink = None if held.sink_mass is None else held.sink_mass.float()
    return replace(held, weights=held.weights.float(), sink_mass=sink)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(layers())
def test_agrees_with_the_dense_reference_in_float64(drawn: Drawn) -> None:
    record = drawn.layer.query_key
    assert record is not None
    assume(record.computed_in == torch.float32)
    found = _fused(drawn.layer, drawn.tokens, segment_ids=drawn.segment_ids)
    assert_agree(found, drawn.reference(), drawn.layer)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(layers())
def test_given_weights_agree_with_the_dense_evaluator(drawn: Drawn) -> None:
    record = drawn.layer.query_key
    assert record is not None
    assume(record.computed_in == torch.float32)
    layer = _in_float32(drawn.layer)
    found = profile_given(layer, drawn.tokens, segment_ids=drawn.segment_ids)
    assume(found is not None)
    assert found is not None
    expected = profile_dense(layer, drawn.tokens, segment_ids=drawn.segment_ids)
    assert_agree(found, expected, drawn.layer)


def _layer(n: int, *, heads: int = 2, batch: int = 1, causal: bool = True) -> LayerAttention:
    generator = torch.Generator().manual_seed(n)
    query, key = (torch.randn(batch, heads, n, 8, generator=generator) for _ in range(2))
    record = QueryKey(query * 3, key, tuple(range(heads)), 8**-0.5)
    return LayerAttention(record, kind="self", causal=causal)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n", [255, 257, 700])
def test_agrees_where_cells_hold_several_rows(n: int, causal: bool) -> None:
    layer = _layer(n, causal=causal)
    tokens = torch.randint(0, 30, (n,), generator=torch.Generator().manual_seed(1)).tolist()
    assert_agree(_fused(layer, tokens), profile_blocked(layer, tokens), layer)
    thirds = [place // (n // 3) for place in range(n)]  # given, so that none are searched
    expected = profile_dense(with_weights(layer), tokens, segment_ids=thirds)
    assert_agree(_fused(layer, tokens, segment_ids=thirds), expected, layer)
    found = profile_given(_in_float32(layer), tokens, segment_ids=thirds)
    assert found is not None
    assert_agree(found, expected, layer)


def test_rows_of_one_head_are_shared_out_among_threads() -> None:
    layer = _layer(900, heads=1)
    expected = profile_blocked(layer)
    before = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            assert_agree(_fused(layer), expected, layer)
    finally:
        torch.set_num_threads(before)


def test_the_same_bits_every_time() -> None:
    layer = _layer(300, heads=3, batch=2)
    assert _fused(layer).to_dict() == _fused(layer).to_dict()


def test_garbage_in_padding_is_never_read() -> None:
    layer = _layer(80)
    record = layer.query_key
    assert record is not None
    mask = (torch.arange(80) >= 6)[None, None, None]
    clean = _fused(replace(layer, weights=layer.held, mask=mask))
    query, key = record.query.clone(), record.key.clone()
    query[:, :, :6], key[:, :, :6] = math.nan, math.inf
    held = replace(record, query=query, key=key)
    dirty = _fused(replace(layer, weights=held, mask=mask))
    assert dirty.to_dict() == clean.to_dict()


def test_nan_in_a_row_shows() -> None:
    layer = _layer(80)
    record = layer.query_key
    assert record is not None
    query = record.query.clone()
    query[0, 1, 5] = math.nan
    found = _fused(replace(layer, weights=replace(record, query=query)))
    assert np.isnan(found.value("entropy")).tolist() == [False, True]
    assert not found.evidence.finite[1]


@pytest.mark.parametrize(
    ("value", "at"),
    [(math.nan, (5, 3)), (math.nan, (5, 60)), (-0.1, (5, 3)), (1e-9, (5, 60)), (math.inf, (9, 9))],
)
def test_weights_that_are_not_as_they_should_be_get_a_second_look(
    value: float, at: tuple[int, int]
) -> None:
    layer = _in_float32(_layer(80))
    layer.weights[0, 1][at] = value
    assert profile_given(layer) is None


def test_holes_in_a_mask_get_a_second_look() -> None:
    mask = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(0)) < 0.5
    layer = replace(_in_float32(_layer(40, causal=False)), mask=mask)
    assert profile_given(layer) is None
    held = _layer(40, causal=False)
    held = replace(held, weights=held.held, mask=mask)
    assert_agree(_fused(held), profile_dense(with_weights(held)), held)


def test_holes_are_never_read_over() -> None:
    layer = _layer(40, causal=False)
    mask = torch.ones(1, 1, 40, 40, dtype=torch.bool)
    mask[..., 7, 3] = False
    layer = replace(layer, weights=layer.held, mask=mask)
    reach = reach_of(layer)
    with pytest.raises(ValueError, match="one stretch of keys"):
        walk_fused(layer, reach, Marks(), reach.seen.expand(1, 2, 40) > 0, slice(0, 1))


def test_rows_of_zeros_carry_no_attention() -> None:
    layer = _in_float32(_layer(80))
    layer.weights[0, 0, 7] = 0
    found = profile_given(layer)
    assert found is not None
    assert found.counts["entropy"].tolist() == [79, 80]
    assert_agree(found, profile_dense(layer), _layer(80))


def test_half_precision_is_read_as_it_is() -> None:
    layer = _in_float32(_layer(80))
    half = replace(layer, weights=layer.weights.bfloat16())
    found, expected = profile_given(half), profile_dense(half)
    assert found is not None
    assert found.dtype == expected.dtype == "bfloat16"
    assert_agree(found, expected, _layer(80))
    assert found.value("row_sum_error").max() > 1e-4


def test_large_layers_are_read_by_compiled_loops() -> None:
    large = _layer(1024)
    assert choose(large).evaluator == "fused"
    assert choose(_layer(64)).evaluator == "blocked"
    assert "small" in choose(_layer(64)).why
    weights = torch.full((1, 4, 512, 512), 1 / 512)
    profile = profile_attention(weights)
    assert profile.layers[0].evaluator == "fused: weights are held; each is read once"
    spoiled = torch.rand(1, 1, 1024, 1024).softmax(-1)
    spoiled[0, 0, 5, 4] += spoiled[0, 0, 5, 3]
    spoiled[0, 0, 5, 3] = -1e-9
    assert "second look" in profile_attention(spoiled).layers[0].evaluator


def test_without_numba_other_evaluators_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = _layer(1024)
    fused = profile_layer(layer)
    monkeypatch.setattr(dispatch, "unfit", lambda _: "numba is not installed")
    found = profile_layer(layer)
    assert found.evaluator.startswith("blocked: query and key are held; not fused: numba is not")
    assert_agree(found, fused, layer)


@pytest.mark.parametrize("kind", ["fused", "given"])
def test_heads_walked_apart_are_the_heads_walked_together(kind: str) -> None:
    names = ("previous_token", "diagonal", "broadcast", "first_token", "uniform")
    options: dict[str, Any] = {"causal": True, "batch": 2, "heads": 1, "seed": 4}
    made = [create_synthetic_attention(90, name, **options) for name in names]
    scores = torch.cat(made, 1).clamp(min=1e-30).log()  # of lines that are looked up again
    record = QueryKey(scores, torch.eye(90).expand(2, 5, 90, 90), tuple(range(5)), 1.0)
    layer = LayerAttention(record, kind="self", causal=True)
    weights = _in_float32(layer)
    sink = torch.full((2, 5, 90), 0.25) * torch.arange(5)[:, None] / 5
    weights = replace(weights, weights=weights.weights * (1 - sink[..., None]), sink_mass=sink)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            one = profile_given(weights) if kind == "given" else None
            found.append(one or _fused(layer))
    finally:
        torch.set_num_threads(before)
    assert found[0].to_dict() == found[1].to_dict()


@pytest.mark.parametrize("low", [0, 1, 7, 20])
def test_a_chain_of_places_finds_what_a_look_at_every_key_finds(low: int) -> None:
    from attncheck.compiled.ledger import places_before
    from attncheck.compiled.rows import on_chain, on_tokens

    draw = np.random.default_rng(low)
    tokens = draw.integers(0, 4, 40).astype(np.int32)
    before = np.concatenate([np.full(1, -1, np.int32), tokens[:-1]])
    previous, rank = places_before(tokens)
    row = draw.random(40).astype(np.float32)
    for own in range(low, 40):
        seen = row[low:own]
        expected = on_tokens(seen, tokens[low:own], before[low:own], tokens[own])
        assert np.allclose(on_chain(seen, low, own, previous), expected, atol=1e-5)
        assert rank[own] == (tokens[:own] == tokens[own]).sum()


@pytest.mark.parametrize("long", [0, 1 << 12])
def test_keys_that_lie_apart_are_the_keys_beside_each_other(
    long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "LONG", long)
    layer = _layer(90, heads=3)
    record = layer.query_key
    assert record is not None
    apart = record.key.transpose(1, 2).contiguous().transpose(1, 2)
    assert not apart.is_contiguous()
    copies = []
    original = torch.Tensor.contiguous

    def spy(tensor: torch.Tensor) -> torch.Tensor:
        copies.append(tensor.data_ptr())
        return original(tensor)

    monkeypatch.setattr(torch.Tensor, "contiguous", spy)
    found = _fused(replace(layer, weights=replace(record, key=apart)))
    assert (apart.data_ptr() in copies) == (long == 0)
    assert found.to_dict() == _fused(layer).to_dict()
