"""Comparisons: two captures of the same heads, and heads with each other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attncheck.attention import AttentionMaps, LayerAttention
from attncheck.checks import (
    assert_attention_close,
    assert_heads_distinct,
    check_attention_close,
    check_heads_distinct,
    render,
)
from attncheck.errors import CheckFailure
from attncheck.tolerances import TOLERANCES
from tests.checks.samples import DTYPES, causal_weights, random_weights


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounding_alone_passes(dtype: torch.dtype) -> None:
    exact = causal_weights(2, 3, 64, dtype=torch.float64)
    assert_attention_close(exact.to(dtype), exact)
    assert_attention_close(exact, exact.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moving_mass_beyond_the_tolerance_fails(dtype: torch.dtype) -> None:
    allowed = TOLERANCES[str(dtype).removeprefix("torch.")].total_variation
    expected = torch.full((1, 1, 32, 2), 0.5, dtype=torch.float64)
    for factor, passes in ((0.5, True), (1.5, False)):
        moved = expected + torch.tensor([1.0, -1.0]) * allowed * factor
        # The coarser of the two dtypes sets the tolerance; 0.5 is exact in all of them.
        assert check_attention_close(moved, expected.to(dtype)).passed is passes


def test_one_wrong_row_in_a_long_sequence_fails() -> None:
    expected = torch.eye(512, dtype=torch.float16)
    actual = expected.clone()
    actual[100] = 0
    actual[100, 7] = 1
    finding = check_attention_close(actual, expected)
    assert finding.offenders[0].values == pytest.approx((1 / 512, 1.0))
    assert finding.offenders[0].values[0] < TOLERANCES["float16"].total_variation
    assert (finding.offenders[0].at.query, finding.offenders[0].worst) == (100, 1.0)
    assert not finding.passed


def test_mean_and_worst_equal_plain_loops() -> None:
    actual, expected = random_weights(2, 2, 3, 4), random_weights(2, 2, 3, 4, seed=1)
    for offender in check_attention_close(actual, expected).offenders:
        head = int(offender.head[-1])
        rows = [
            0.5 * sum(abs(float(actual[b, head, q, k] - expected[b, head, q, k])) for k in range(4))
            for b in range(2)
            for q in range(3)
        ]
        assert offender.values == pytest.approx((sum(rows) / 6, max(rows)), abs=1e-6)


def test_max_variation_and_single_weights() -> None:
    expected = torch.tensor([[0.5, 0.5, 0.0]])
    actual = torch.tensor([[0.4, 0.5, 0.1]])
    assert_attention_close(actual, expected, max_variation=0.11)
    assert not check_attention_close(actual, expected, max_variation=0.09).passed
    assert_attention_close(actual, expected, atol=0.11)
    assert_attention_close(actual, expected, atol=0.1001, rtol=0)
    assert not check_attention_close(actual, expected, atol=0.09).passed
    assert not check_attention_close(actual, expected, rtol=0.5).passed
    assert_attention_close(actual, torch.tensor([[0.5, 0.5, 0.09]]), rtol=0.21)
    with pytest.raises(ValueError, match="give one or the other"):
        assert_attention_close(actual, expected, max_variation=0.1, atol=0.1)


def test_nan_never_agrees_unless_the_row_is_masked() -> None:
    expected = causal_weights(1, 1, 4)
    actual = expected.clone()
    actual[0, 0, 0] = math.nan
    for one, other in ((actual, expected), (expected, actual), (actual, actual)):
        with pytest.raises(CheckFailure, match="NaN in 1 of 4 rows"):
            assert_attention_close(one, other)
        assert not check_attention_close(one, other, atol=1.0).passed
    assert_attention_close(actual, expected, mask=torch.tensor([0, 1, 1, 1]), causal=True)
    with pytest.raises(ValueError, match="masked; nothing to judge"):
        assert_attention_close(actual, expected, mask=torch.zeros(4, dtype=torch.int))


def test_what_does_not_match_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected: has 2 layers, attn has 1"):
        assert_attention_close(random_weights(2, 3, 3), [random_weights(2, 3, 3)] * 2)
    with pytest.raises(ValueError, match=r"expected: layer 0 has shape \(1, 2, 3, 4\)"):
        assert_attention_close(random_weights(2, 3, 3), random_weights(2, 3, 4))
    with pytest.raises(ValueError, match="rtol: got"):
        assert_attention_close(torch.eye(2), torch.eye(2), rtol=-1)


@given(data=st.data())
def test_a_moved_row_is_found_at_its_head(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5)))
    expected = random_weights(*shape, 4)
    batch, head, query = (data.draw(st.integers(0, size - 1)) for size in shape)
    actual = expected.clone()
    actual[batch, head, query] = actual[batch, head, query].flip(0) * 0.5 + 0.125
    if torch.allclose(actual, expected, atol=1e-3):
        return
    finding = check_attention_close(actual, expected)
    assert [offender.head for offender in finding.offenders] == [f"L0H{head}"]
    at = finding.offenders[0].at
    assert (at.batch, at.query) == (batch if shape[0] > 1 else None, query)


def test_equal_heads_are_found_within_a_layer() -> None:
    weights = causal_weights(1, 4, 12)
    assert_heads_distinct(weights)
    weights[:, 3] = weights[:, 1]
    finding = check_heads_distinct(weights)
    assert [(offender.head, offender.worst) for offender in finding.offenders] == [
        ("L0H1, L0H3", 0.0)
    ]
    assert (finding.n_passed, finding.n_total, finding.unit) == (5, 6, "pairs")
    assert "5 of 6 pairs pass" in render(finding)
    assert_heads_distinct(weights, heads=["L0H0", "L0H1", "L0H2"])


def test_heads_of_different_layers_are_compared_on_request() -> None:
    weights = causal_weights(1, 2, 12)
    layers = [weights, weights.flip(1)]
    assert_heads_distinct(layers)
    finding = check_heads_distinct(layers, across_layers=True)
    assert {offender.head for offender in finding.offenders} == {"L0H0, L1H1", "L0H1, L1H0"}


def test_min_distance_is_the_normalised_jensen_shannon_distance() -> None:
    p, q = (0.9, 0.1), (0.6, 0.4)
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    divergence = sum(
        0.5 * a * math.log(a / m) + 0.5 * b * math.log(b / m)
        for a, b, m in zip(p, q, middle, strict=True)
    )
    distance = divergence / math.log(2)
    weights = torch.tensor([[p], [q]], dtype=torch.float64)
    assert_heads_distinct(weights, min_distance=distance - 1e-6)
    finding = check_heads_distinct(weights, min_distance=distance + 1e-6)
    assert finding.offenders[0].worst == pytest.approx(distance)


def test_padded_queries_may_hold_anything() -> None:
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    ours, theirs = causal_weights(2, 2, 6), causal_weights(2, 2, 6)
    ours[1, :, :2], theirs[1, :, :2] = 0, 1 / 6
    assert_attention_close(ours, theirs, mask=mask)
    assert_attention_close(LayerAttention(ours, kind="self", causal=True), theirs, mask=mask)
    ours[1, 0, 2] = ours[1, 0, 2].flip(0)
    assert not check_attention_close(ours, theirs, mask=mask).passed


def test_a_variation_that_nothing_exceeds_is_refused() -> None:
    weights = random_weights(2, 4, 4)
    for wrong in (1, 2.5, math.inf):
        with pytest.raises(ValueError, match="max_variation: got"):
            assert_attention_close(weights, weights, max_variation=wrong)


def test_layers_of_different_length_are_not_compared_across() -> None:
    maps = AttentionMaps(
        [LayerAttention(random_weights(1, 2, n, n), index=index) for index, n in enumerate((8, 5))]
    )
    assert_heads_distinct(maps, min_distance=1e-9)
    with pytest.raises(ValueError, match="across_layers: the layers of attn differ"):
        assert_heads_distinct(maps, across_layers=True)


def test_distinct_arguments() -> None:
    with pytest.raises(ValueError, match="no two heads to compare within a layer"):
        assert_heads_distinct([random_weights(1, 4, 4)] * 2)
    for wrong in (0, 1.5):
        with pytest.raises(ValueError, match="min_distance: got"):
            assert_heads_distinct(random_weights(2, 4, 4), min_distance=wrong)
    with pytest.raises(TypeError, match="min_distance: is None"):
        assert_heads_distinct(random_weights(2, 4, 4), min_distance=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="across_layers: got str; expected True or False"):
        assert_heads_distinct(random_weights(2, 4, 4), across_layers="all")  # type: ignore[arg-type]
