"""Every row measure, whatever the layer: what may not change it, and which way it must go."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attncheck.attention import AttentionMaps, LayerAttention
from attncheck.evaluate import profile_attention
from attncheck.metrics import METRICS, attention_rollout, head_similarity
from attncheck.strategies import attention_layers, attention_shapes, attention_weights
from tests.layer_changes import evened, last_queries, padded, with_batch, with_heads

DOUBLE = torch.float64
LAYERS = attention_layers(dtype=DOUBLE)
SELF = attention_layers(shape=attention_shapes(), dtype=DOUBLE)
EXACT = 1e-12


def measured(layer: LayerAttention) -> dict[str, Tensor]:
    """Values by measure, NaN where a row has none."""
    return {name: metric.rows(layer)[0] for name, metric in METRICS.items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name in METRICS:
        torch.testing.assert_close(
            one[name], other[name], rtol=0, atol=EXACT, equal_nan=True, msg=lambda m, n=name: n + m
        )


@given(st.data(), LAYERS)
def test_permuting_heads_or_batch_permutes_every_measure(
    data: st.DataObject, layer: LayerAttention
) -> None:
    heads = data.draw(st.permutations(range(layer.n_heads)))
    batch = data.draw(st.permutations(range(layer.batch)))
    changed = measured(with_batch(with_heads(layer, heads), batch))
    expected = {name: rows[batch][:, heads] for name, rows in measured(layer).items()}
    assert_same(changed, expected)


@given(SELF, st.integers(0, 3), st.integers(0, 3))
def test_padding_with_a_mask_changes_no_measure(
    layer: LayerAttention, left: int, right: int
) -> None:
    wide = measured(padded(layer, left, right))
    inner = {name: rows[..., left : left + layer.n_query] for name, rows in wide.items()}
    assert_same(inner, measured(layer))
    for name, rows in wide.items():
        outside = torch.cat([rows[..., :left], rows[..., left + layer.n_query :]], -1)
        assert outside.isnan().all(), name


@given(
    attention_layers(
        shape=attention_shapes(), masks=["full", "padding"], causal=True, dtype=DOUBLE
    ),
    st.integers(1, 6),
)
def test_a_key_value_cache_slice_keeps_its_rows(layer: LayerAttention, n_query: int) -> None:
    kept = min(n_query, layer.n_query)
    sliced = measured(last_queries(layer, kept))
    assert_same(sliced, {name: rows[..., -kept:] for name, rows in measured(layer).items()})


@given(LAYERS)
def test_spelling_causality_out_as_a_mask_changes_nothing(layer: LayerAttention) -> None:
    spelled = with_heads(layer, range(layer.n_heads))
    assert_same(measured(spelled), measured(layer))


@given(LAYERS, st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_a_dtype_changes_the_weights_but_not_the_arithmetic(
    layer: LayerAttention, dtype: torch.dtype
) -> None:
    low = LayerAttention(
        layer.weights.to(dtype), kind=layer.kind, mask=layer.mask, causal=layer.causal
    )
    same = LayerAttention(
        low.weights.double(), kind=layer.kind, mask=layer.mask, causal=layer.causal
    )
    for name, rows in measured(low).items():
        expected = measured(same)[name]
        torch.testing.assert_close(
            rows.double(),
            expected,
            rtol=1e-5,
            atol=1e-5,
            equal_nan=True,
            msg=lambda m, n=name: n + m,
        )


@given(LAYERS, st.integers(0, 4), st.integers(0, 4))
def test_evening_attention_out_moves_every_concentration_one_way(
    layer: LayerAttention, one: int, other: int
) -> None:
    less, more = (measured(evened(layer, share / 4)) for share in sorted((one, other)))
    for name in ("entropy", "normalized_entropy", "effective_keys", "participation_ratio"):
        assert (less[name].nan_to_num() <= more[name].nan_to_num() + 1e-9).all(), name
    for name in ("max_weight", "gini"):
        assert (less[name].nan_to_num() >= more[name].nan_to_num() - 1e-9).all(), name


@given(LAYERS)
def test_measures_stay_in_their_range_and_even_rows_reach_its_end(layer: LayerAttention) -> None:
    keys = layer.visible().expand(layer.weights.shape).sum(-1).double()
    for values in (measured(layer), measured(evened(layer, 1.0))):
        for name in ("normalized_entropy", "gini", "sink_mass", "max_weight", "future_mass"):
            rows = values[name].nan_to_num()
            assert (rows >= -EXACT).all(), name
            assert (rows <= 1 + EXACT).all(), name
        for name in ("effective_keys", "participation_ratio"):
            rows = values[name]
            fits = rows.isnan() | ((rows >= 1 - 1e-9) & (rows <= keys * (1 + 1e-9)))
            assert fits.all(), name
    assert torch.allclose(values["normalized_entropy"].nan_to_num(1.0), torch.ones_like(keys))
    assert torch.allclose(values["gini"].nan_to_num(0.0), torch.zeros_like(keys), atol=1e-9)


@given(attention_weights(shape=attention_shapes(max_batch=4), causal=True, dtype=torch.bfloat16))
def test_profiles_of_single_sequences_add_up_to_the_profile_of_the_batch(weights: Tensor) -> None:
    whole = profile_attention(weights, causal=True, also=["gini"])
    parts = [profile_attention(one[None], causal=True, also=["gini"]) for one in weights]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    for name in (*METRICS, "diagonal", "previous_token", "first_token", "previous_token.lift"):
        assert merged[name] == pytest.approx(whole[name], abs=EXACT, nan_ok=True), name


@given(st.data(), attention_weights(shape=attention_shapes(max_heads=4), dtype=DOUBLE))
def test_similarity_is_symmetric_and_follows_the_heads(
    data: st.DataObject, weights: Tensor
) -> None:
    order = data.draw(st.permutations(range(weights.shape[1])))
    distance = head_similarity(weights).distance
    assert distance == pytest.approx(distance.T, abs=EXACT)
    assert distance.diagonal() == pytest.approx(0, abs=1e-9)
    assert (distance <= 1 + 1e-9).all()
    permuted = head_similarity(weights[:, order]).distance
    assert permuted == pytest.approx(distance[order][:, order], abs=1e-9)


@given(attention_weights(shape=attention_shapes(max_batch=1), causal=True, dtype=DOUBLE))
def test_rollout_of_attention_is_attention(weights: Tensor) -> None:
    layers = [LayerAttention(weights, index=i, kind="self", causal=True) for i in range(3)]
    rollout = attention_rollout(AttentionMaps(layers))
    assert (rollout >= 0).all()
    assert torch.allclose(rollout.sum(-1), torch.ones(rollout.shape[:-1], dtype=rollout.dtype))
    assert (rollout.triu(1) == 0).all()
