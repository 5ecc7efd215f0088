"""Each measure against plain float64 loops, its closed forms, and its invariances."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from attncheck.attention import LayerAttention, as_attention
from attncheck.metrics import METRICS, blocks, measure_layer, row_measures
from tests.metrics.cases import layers
from tests.metrics.reference import reference

MEASURES = tuple(METRICS)


def causal_uniform(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    lower = torch.ones(n, n, dtype=torch.float64).tril()
    return (lower / lower.sum(-1, keepdim=True)).to(dtype)


def harmonic(n: int) -> float:
    return math.fsum(1 / k for k in range(1, n + 1))


def mean(weights: Tensor, measure: str, **context: bool) -> float:
    return row_measures(weights, measure, **context)[0].nanmean().item()


@pytest.mark.parametrize("measure", MEASURES)
@given(layer=layers())
def test_measure_equals_the_loop(measure: str, layer: LayerAttention) -> None:
    values, valid = METRICS[measure].rows(layer)
    expected = reference(measure, layer)
    assert_close(values, expected, atol=1e-12, rtol=1e-12, equal_nan=True)
    assert torch.equal(valid, ~expected.isnan())


@pytest.mark.parametrize("measure", MEASURES)
@given(layer=layers(torch.float32))
def test_float32_stays_within_rounding(measure: str, layer: LayerAttention) -> None:
    values, _ = METRICS[measure].rows(layer)
    assert_close(values, reference(measure, layer), atol=2e-6, rtol=2e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("measure", MEASURES)
@given(data=st.data())
def test_half_precision_is_evaluated_exactly(
    measure: str, dtype: torch.dtype, data: st.DataObject
) -> None:
    """Whatever rounding the weights went through, the measure adds none of its own."""
    layer = data.draw(layers(dtype))
    values, _ = METRICS[measure].rows(layer)
    assert_close(values, reference(measure, layer), atol=2e-6, rtol=2e-6, equal_nan=True)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("measure", ["normalized_entropy", "gini", "max_weight", "sink_mass"])
def test_half_precision_weights_stay_near_float32(
    measure: str, dtype: torch.dtype, bound: float
) -> None:
    scores = torch.randn(2, 4, 48, 48, generator=torch.Generator().manual_seed(0))
    weights = torch.softmax(scores * 2, -1)
    full = row_measures(weights, measure)[0]
    half = row_measures(weights.to(dtype), measure)[0]
    assert 0 < (half - full).abs().nan_to_num().max() < bound


@given(layer=layers())
def test_one_walk_gives_the_same_as_many(layer: LayerAttention) -> None:
    together = measure_layer(layer, METRICS.values())
    for name, metric in METRICS.items():
        values, valid = metric.rows(layer)
        assert_close(together[name][0], values, atol=0, rtol=0, equal_nan=True)
        assert torch.equal(together[name][1], valid)


@pytest.mark.parametrize("budget", [1, 7, 20, 1000])
@given(layer=layers())
def test_blocks_do_not_change_values(budget: int, layer: LayerAttention) -> None:
    whole = measure_layer(layer, METRICS.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(blocks.BLOCK_WEIGHTS, "cpu", budget)
        cut = measure_layer(layer, METRICS.values())
    for name, (values, valid) in whole.items():
        assert_close(cut[name][0], values, atol=1e-12, rtol=1e-12, equal_nan=True)
        assert torch.equal(cut[name][1], valid)


def test_blocks_cover_every_row_once_and_stay_small() -> None:
    layer = LayerAttention(torch.rand(2, 3, 700, 900))
    covered = torch.zeros(2, 3, 700)
    for window, block in blocks.row_blocks(layer):
        covered[window] += 1
        assert block.given.numel() <= blocks.BLOCK_WEIGHTS["cpu"]
    assert bool((covered == 1).all())


@pytest.mark.parametrize("measure", MEASURES)
@given(layer=layers(), data=st.data())
def test_permuting_heads_and_batch_permutes_rows(
    measure: str, layer: LayerAttention, data: st.DataObject
) -> None:
    batch = torch.tensor(data.draw(st.permutations(range(layer.batch))))
    heads = torch.tensor(data.draw(st.permutations(range(layer.n_heads))))

    def permute(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        tensor = tensor[batch] if tensor.shape[0] > 1 else tensor
        return tensor[:, heads] if tensor.shape[1] > 1 else tensor

    moved = replace(
        layer,
        weights=layer.weights[batch][:, heads],
        mask=permute(layer.mask),
        sink_mass=permute(layer.sink_mass),
    )
    before, after = METRICS[measure].rows(layer)[0], METRICS[measure].rows(moved)[0]
    assert_close(after, before[batch][:, heads], atol=1e-12, rtol=1e-12, equal_nan=True)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("measure", MEASURES)
@given(
    n=st.integers(1, 6), padding=st.integers(1, 4), causal=st.booleans(), seed=st.integers(0, 99)
)
def test_padding_with_a_mask_changes_nothing(
    side: str, measure: str, n: int, padding: int, causal: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(1, 2, n, n, generator=generator, dtype=torch.float64) * 2
    if causal:
        scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
    weights = torch.softmax(scores, -1)
    real = slice(0, n) if side == "right" else slice(padding, n + padding)
    padded = torch.full((1, 2, n + padding, n + padding), torch.nan, dtype=torch.float64)
    padded[:, :, real] = 0
    padded[:, :, real, real] = weights
    mask = torch.zeros(1, n + padding, dtype=torch.long)
    mask[:, real] = 1
    plain = row_measures(weights, measure, causal=causal)[0]
    got = row_measures(padded, measure, mask=mask, causal=causal)[0]
    assert_close(got[:, :, real], plain, atol=1e-12, rtol=1e-12, equal_nan=True)
    keep = torch.zeros(n + padding, dtype=torch.bool)
    keep[real] = True
    assert bool(got[:, :, ~keep].isnan().all())


@given(layer=layers())
def test_ranges_hold(layer: LayerAttention) -> None:
    found = {name: values for name, (values, _) in measure_layer(layer, METRICS.values()).items()}
    for name in ("normalized_entropy", "gini"):
        inside = found[name][~found[name].isnan()]
        assert bool(((inside >= 0) & (inside <= 1)).all())
    seen = layer.visible().sum(-1).expand(found["entropy"].shape)
    for name in ("effective_keys", "participation_ratio"):
        values = found[name]
        inside = ~values.isnan()
        assert bool((values[inside] >= 1 - 1e-12).all())
        assert bool((values[inside] <= seen[inside] + 1e-9).all())
    both = ~found["entropy"].isnan()
    assert bool((found["participation_ratio"] <= found["effective_keys"] + 1e-9)[both].all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [2, 3, 4, 8, 16, 64, 512])
def test_causal_uniform_is_uniform(n: int, dtype: torch.dtype) -> None:
    weights = causal_uniform(n, dtype)
    rounding = 1e-12 if dtype == torch.float64 else 3e-7
    assert mean(weights, "normalized_entropy") == pytest.approx(1, abs=rounding)
    assert mean(weights, "gini") == pytest.approx(0, abs=1e-6)
    assert mean(weights, "effective_keys") == pytest.approx((n + 1) / 2, rel=1e-6)


@pytest.mark.parametrize("n", [2, 3, 8, 64])
def test_causal_uniform_closed_forms(n: int) -> None:
    weights = causal_uniform(n)
    assert mean(weights, "mean_distance") == pytest.approx((n - 1) / 4)
    assert mean(weights, "max_weight") == pytest.approx(harmonic(n) / n)
    sink = row_measures(weights, "sink_mass")[0]
    assert bool(sink[0, 0, :1].isnan().all())
    assert sink.nanmean().item() == pytest.approx((harmonic(n) - 1) / (n - 1))
    # Gu's alpha_1 counts the first row, whose weight on the first key is 1: H_T / T.
    alpha = (sink.nansum().item() + 1) / n
    assert alpha == pytest.approx(harmonic(n) / n)
    if n == 8:
        assert alpha == pytest.approx(0.340, abs=5e-4)
    if n == 64:
        assert alpha == pytest.approx(0.0741, abs=5e-5)


@pytest.mark.parametrize("n", [2, 5, 32])
def test_bidirectional_uniform_closed_forms(n: int) -> None:
    weights = torch.full((n, n), 1 / n, dtype=torch.float64)
    assert mean(weights, "mean_distance") == pytest.approx((n * n - 1) / (3 * n))
    assert mean(weights, "future_mass") == pytest.approx((n - 1) / (2 * n))
    assert mean(weights, "sink_mass") == pytest.approx(1 / n)
    assert mean(weights, "entropy") == pytest.approx(math.log(n))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [2, 7, 300])
def test_one_hot_rows(n: int, dtype: torch.dtype) -> None:
    weights = torch.eye(n, dtype=dtype)
    for measure, value in {
        "entropy": 0.0,
        "normalized_entropy": 0.0,
        "effective_keys": 1.0,
        "participation_ratio": 1.0,
        "max_weight": 1.0,
        "gini": 1.0,
        "mean_distance": 0.0,
        "row_sum_error": 0.0,
        "future_mass": 0.0,
    }.items():
        rows = row_measures(weights, measure, causal=False)[0]
        assert bool((rows == value).all()), measure


def test_a_single_key() -> None:
    weights = torch.ones(1, 1)
    values = {name: row_measures(weights, name)[0].item() for name in MEASURES}
    undefined = {name for name, value in values.items() if math.isnan(value)}
    assert undefined == {"normalized_entropy", "gini", "sink_mass"}
    assert values["effective_keys"] == values["max_weight"] == values["participation_ratio"] == 1
    assert values["entropy"] == values["mean_distance"] == values["row_sum_error"] == 0


def test_cache_slice_measures_as_the_last_rows_of_the_whole() -> None:
    scores = torch.randn(2, 2, 9, 9, generator=torch.Generator().manual_seed(3))
    whole = torch.softmax(
        scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf), -1
    ).double()
    for measure in MEASURES:
        full = row_measures(whole, measure, causal=True)[0]
        last = row_measures(whole[:, :, -4:], measure, causal=True)[0]
        assert_close(last, full[:, :, -4:], atol=1e-12, rtol=0, equal_nan=True)


def test_positions_mean_nothing_across_sequences() -> None:
    weights = torch.full((1, 1, 4, 4), 0.25)
    layer = LayerAttention(weights, kind="cross")
    for measure in ("mean_distance", "future_mass"):
        assert not METRICS[measure].rows(layer)[1].any()
    # Every query is "behind" the first key of another sequence.
    assert METRICS["sink_mass"].rows(layer)[1].all()


def test_sliding_window_rows_that_cannot_see_the_first_key_do_not_count() -> None:
    n, window = 6, 2
    distance = torch.arange(n)[:, None] - torch.arange(n)
    mask = (distance >= 0) & (distance <= window)
    weights = mask / mask.sum(-1, keepdim=True)
    layer = as_attention(weights, mask=mask[None, None], causal=True).layers[0]
    values, valid = METRICS["sink_mass"].rows(layer)
    assert valid[0, 0].tolist() == [False, True, True, False, False, False]
    assert values[0, 0, 1:3].tolist() == pytest.approx([1 / 2, 1 / 3])
    sink = torch.full((1, 1, n), 0.5)
    learned = replace(layer, weights=weights[None, None] / 2, sink_mass=sink)
    values, valid = METRICS["sink_mass"].rows(learned)
    assert valid[0, 0].tolist() == [False, True, True, True, True, True]
    assert values[0, 0, 1:].tolist() == pytest.approx([3 / 4, 2 / 3, 1 / 2, 1 / 2, 1 / 2])
    assert METRICS["sink_mass"].summary.endswith("queries behind that key that see either")


def test_a_learned_sink_leaves_the_shape_over_keys_alone() -> None:
    plain = torch.softmax(torch.randn(1, 1, 5, 5, generator=torch.Generator().manual_seed(1)), -1)
    sink = torch.full((1, 1, 5), 0.75)
    layer = LayerAttention(plain / 4, sink_mass=sink)
    for measure in ("entropy", "gini", "participation_ratio"):
        expected = row_measures(plain, measure, causal=False)[0]
        assert_close(METRICS[measure].rows(layer)[0], expected, atol=1e-6, rtol=0, equal_nan=True)
    assert METRICS["row_sum_error"].rows(layer)[0].max() < 1e-6


def test_mass_on_hidden_keys_shows_where_it_should() -> None:
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.25, 0.5], [0.5, 0.25, 0.25]])
    layer = as_attention(weights, causal=True).layers[0]
    assert METRICS["future_mass"].rows(layer)[0][0, 0].tolist() == [0, 0.5, 0]
    assert METRICS["row_sum_error"].rows(layer)[0].max() == 0
    assert METRICS["normalized_entropy"].rows(layer)[0][0, 0, 1] == 1
    assert METRICS["max_weight"].rows(layer)[0][0, 0, 1] == 0.25


def test_row_sum_error_is_summed_in_double() -> None:
    """In its own half precision this row would seem to sum to exactly 1."""
    weights = torch.full((1, 1, 1, 3), 1 / 3, dtype=torch.bfloat16)
    expected = abs(3 * weights[0, 0, 0, 0].double().item() - 1)
    assert 0 < METRICS["row_sum_error"].rows(LayerAttention(weights))[0].item() == expected


def test_tiny_negative_weights_are_rounding() -> None:
    weights = torch.tensor([[1.0 + 1e-7, -1e-7], [0.5, 0.5]])
    for measure in MEASURES:
        values = row_measures(weights, measure, causal=False)[0]
        assert bool(values[..., 1].isfinite().all()), measure
    assert mean(weights, "entropy") == pytest.approx(math.log(2) / 2)


def test_weights_are_left_as_they_were() -> None:
    weights = torch.softmax(torch.randn(2, 5, 5), -1).requires_grad_()
    before = weights.detach().clone()
    for measure in MEASURES:
        assert not row_measures(weights, measure, causal=True)[0].requires_grad
    assert torch.equal(weights, before)


def test_row_sums_of_float32_are_taken_in_float64() -> None:
    """Adding thousands of weights in float32 leaves an error of its own, near 1e-7."""
    scores = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0)) * 3
    weights = torch.softmax(scores, -1)
    found = row_measures(weights, "row_sum_error")[0][0, 0]
    assert_close(found, (weights.double().sum(-1) - 1).abs(), atol=1e-12, rtol=0)


def test_keys_that_are_hidden_cost_gini_no_digits() -> None:
    seen = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
    mask = torch.arange(8192) >= 8192 - 5
    among_many = torch.nn.functional.pad(seen, (8192 - 5, 0))
    found = row_measures(among_many, "gini", mask=mask.expand(4, -1))[0]
    expected = row_measures(seen.double(), "gini")[0]
    assert_close(found, expected, atol=2e-7, rtol=0)
