"""Profiles of parts add up to the profile of the whole."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attncheck.attention import AttentionMaps, LayerAttention
from attncheck.evaluate import profile_attention, profile_layer
from attncheck.profile import HeadProfile
from tests.profiles.samples import Sample, samples

NONE: frozenset[str] = frozenset()


def profile(sample: Sample) -> HeadProfile:
    return profile_attention(
        sample.layers, tokens=sample.tokens, mask=sample.mask, causal=sample.causal
    )


def merged(profiles: list[HeadProfile]) -> HeadProfile:
    return functools.reduce(lambda one, other: one.merge(other), profiles)


def assert_same(found: HeadProfile, whole: HeadProfile, searched: frozenset[str] = NONE) -> None:
    """Counts bit for bit, everything else to rounding, but for patterns searched anew."""
    for got, want in zip(found.layers, whole.layers, strict=True):
        assert got.heads == want.heads
        for metric in want.sums:
            assert np.array_equal(got.counts[metric], want.counts[metric]), metric
            assert got.counts[metric].dtype == np.int64
            np.testing.assert_allclose(got.maxima[metric], want.maxima[metric], atol=1e-12)
            np.testing.assert_allclose(got.sums[metric], want.sums[metric], atol=1e-11)
        assert np.array_equal(got.evidence.rows, want.evidence.rows)
    assert found.measures == whole.measures
    for measure in set(whole.measures) - searched:
        np.testing.assert_allclose(found[measure], whole[measure], atol=1e-9, err_msg=measure)


@settings(max_examples=40)
@given(sample=samples(), data=st.data())
def test_parts_in_any_order_add_up_to_the_whole(sample: Sample, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(sample.batch)))
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, sample.batch - 1)))))
    bounds = [0, *[cut for cut in cuts if cut < sample.batch], sample.batch]
    parts = [order[a:b] for a, b in itertools.pairwise(bounds)]
    assert_same(merged([profile(sample.part(list(part))) for part in parts]), profile(sample))


@settings(max_examples=40)
@given(sample=samples())
def test_sequences_of_other_lengths_add_up_to_the_padded_batch(sample: Sample) -> None:
    alone = [profile(sample.unpadded(element)) for element in range(sample.batch)]
    # Segments that nobody gave are searched in each matrix, padding included.
    assert_same(merged(alone), profile(sample), searched=frozenset({"block"}))


@given(sample=samples())
def test_merging_is_commutative_and_leaves_both_as_they_were(sample: Sample) -> None:
    one, other = profile(sample), profile(sample.part([0]))
    before = one.to_dict(), other.to_dict()
    assert_same(one.merge(other), other.merge(one))
    assert (one.to_dict(), other.to_dict()) == before


@settings(max_examples=25)
@given(sample=samples())
def test_merging_is_associative(sample: Sample) -> None:
    one, two, three = profile(sample), profile(sample.part([0])), profile(sample.unpadded(0))
    assert_same(one.merge(two).merge(three), one.merge(two.merge(three)))


def test_merging_counts_twice_what_came_twice() -> None:
    one = profile_attention(torch.full((1, 2, 6, 6), 1 / 6))
    both = one.merge(one)
    for metric, counts in one.layers[0].counts.items():
        assert np.array_equal(both.layers[0].counts[metric], 2 * counts)
    np.testing.assert_allclose(both["entropy"], one["entropy"])


def test_a_maximum_stays_a_maximum() -> None:
    good, bad = (torch.full((3, 3), 1 / 3, dtype=torch.float64) for _ in range(2))
    bad[1] *= 1.0005
    profiles = [profile_attention(weights, causal=False) for weights in (bad, good)]
    assert merged(profiles)["row_sum_error"].item() == pytest.approx(5e-4, rel=1e-9)
    assert merged(profiles)["row_sum_error.mean"].item() == pytest.approx(5e-4 / 6)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "attn.9", "name of attn.9 is 'attn.9', here 'layer 0'"),
        ("causal", True, "causal of layer 0 is True, here False; .*; pass causal= when"),
        ("kind", "cross", "kind of layer 0 is 'cross', here 'unknown'"),
        ("call", 1, "call of layer 0 is 1, here 0"),
    ],
)
def test_another_layer_does_not_merge(field: str, value: object, message: str) -> None:
    layer = LayerAttention(torch.eye(4)[None, None])
    other = replace(layer, **{field: value})  # type: ignore[arg-type]
    profiles = [HeadProfile([profile_layer(one)]) for one in (layer, other)]
    with pytest.raises(ValueError, match=message):
        profiles[0].merge(profiles[1])


def test_other_heads_do_not_merge() -> None:
    one, other = (profile_attention(torch.eye(4).repeat(h, 1, 1)) for h in (2, 3))
    with pytest.raises(ValueError, match="other: holds 1 layer with heads L0H0, L0H1, L0H2, here"):
        one.merge(other)


def test_what_is_no_profile_is_neither_merged_nor_compared() -> None:
    one = profile_attention(torch.eye(4))
    with pytest.raises(TypeError, match="other: is dict; expected a HeadProfile"):
        one.merge(one.to_dict())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="other: is NoneType; expected a HeadProfile"):
        one.compare(None)  # type: ignore[arg-type]


def test_ragged_layers_merge() -> None:
    weights = [torch.full((1, heads, 4, 4), 0.25) for heads in (3, 1)]
    maps = AttentionMaps(LayerAttention(w, index=i) for i, w in enumerate(weights))
    one = profile_attention(maps)
    both = one.merge(one)
    assert both.heads() == ("L0H0", "L0H1", "L0H2", "L1H0")
    assert np.isnan(both["entropy"]).tolist() == [[False] * 3, [False, True, True]]
