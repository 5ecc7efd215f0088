"""The dense evaluator: what goes into a profile, and what it needs for that."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given

from attncheck.attention import AttentionMaps, LayerAttention
from attncheck.evaluate import profile_attention, profile_layer
from attncheck.metrics import METRICS
from tests.metrics.cases import layers
from tests.metrics.reference import reference


@given(layer=layers())
def test_sums_counts_and_maxima_equal_the_loops(layer: LayerAttention) -> None:
    profile = profile_layer(layer, also=["gini"])
    assert set(profile.sums) == set(METRICS)
    for name in METRICS:
        rows = reference(name, layer).transpose(0, 1).flatten(1)
        counts = (~rows.isnan()).sum(-1)
        assert profile.counts[name].tolist() == counts.tolist()
        np.testing.assert_allclose(profile.sums[name], rows.nansum(-1), atol=1e-10)
        expected = [max((x for x in row if x == x), default=-np.inf) for row in rows.tolist()]
        np.testing.assert_allclose(profile.maxima[name], expected, atol=1e-10)


def test_what_sorts_is_measured_only_on_request() -> None:
    weights = torch.full((1, 2, 4, 4), 0.25)
    plain = profile_attention(weights)
    assert set(plain.measures) == set(profile_attention(weights, also=["gini"]).measures) - {"gini"}
    with pytest.raises(KeyError, match=r"pass also=\['gini'\] to profile_attention"):
        plain["gini"]
    assert profile_attention(weights, also="gini")["gini"].tolist() == [[0.0, 0.0]]
    with pytest.raises(ValueError, match="also: no measure 'skew'; on request there is gini"):
        profile_attention(weights, also=["gini", "skew"])


def test_a_profile_carries_what_the_layer_was() -> None:
    layer = LayerAttention(
        torch.eye(4, dtype=torch.float16).repeat(1, 2, 1, 1),
        name="model.layers.3.attn",
        index=3,
        kind="self",
        backend="sdpa",
        n_key_value_heads=1,
        causal=True,
        heads=(2, 5),
        call=1,
    )
    profile = profile_layer(layer)
    assert (profile.name, profile.index, profile.call) == ("model.layers.3.attn", 3, 1)
    assert (profile.kind, profile.backend, profile.causal) == ("self", "sdpa", True)
    assert (profile.dtype, profile.heads, profile.n_kv_heads) == ("float16", (2, 5), 1)
    assert profile.sums["entropy"].dtype == np.float64
    assert profile.counts["entropy"].dtype == np.int64


def test_tokens_of_the_maps_are_used_and_cross_layers_ignore_them() -> None:
    weights = torch.full((1, 1, 4, 4), 0.25)
    crossed = LayerAttention(torch.full((1, 1, 4, 9), 1 / 9), index=1, kind="cross")
    maps = AttentionMaps([LayerAttention(weights), crossed], tokens=(tuple("abab"),))
    profile = profile_attention(maps)
    assert "induction" in profile.layers[0].measures
    assert "induction" not in profile.layers[1].measures


def test_tokens_of_the_wrong_length() -> None:
    with pytest.raises(ValueError, match="tokens: 3 tokens for 4 keys"):
        profile_attention(torch.eye(4), tokens=list("abc"))


def test_segments_and_delimiters_reach_the_patterns() -> None:
    weights = torch.eye(8)
    weights[:, 3] += 1
    weights = weights / weights.sum(-1, keepdim=True)
    tokens = list("abc|defg")
    profile = profile_attention(
        weights, tokens=tokens, delimiters=["|"], segment_ids=[0] * 4 + [1] * 4, causal=False
    )
    # Half of every row lies on the delimiter, all of row 3; rows of segment 0 stay inside it.
    assert profile["delimiter"].item() == pytest.approx((7 * 0.5 + 1) / 8)
    assert profile["block"].item() == pytest.approx((4 * 1 + 4 * 0.5) / 8)
