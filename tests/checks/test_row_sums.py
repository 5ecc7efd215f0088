"""Every row is a distribution, and the message says what it is instead."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attncheck.attention import LayerAttention
from attncheck.checks import assert_row_stochastic, check_row_stochastic, render
from attncheck.errors import CheckFailure
from attncheck.tolerances import tolerance_for
from tests.checks.samples import DTYPES, causal_weights, random_weights


def hint_of(weights: torch.Tensor, **options: object) -> str:
    finding = check_row_stochastic(weights, **options)  # type: ignore[arg-type]
    assert not finding.passed
    return finding.hints[0] if finding.hints else ""


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_key", [1, 7, 4096])
def test_softmax_passes_in_every_dtype(dtype: torch.dtype, n_key: int) -> None:
    assert_row_stochastic(random_weights(2, 3, 5, n_key).to(dtype).softmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n_key", [1, 7, 4096])
def test_softmax_in_float32_passes_in_what_is_no_wider(dtype: torch.dtype, n_key: int) -> None:
    assert_row_stochastic(random_weights(2, 3, 5, n_key).softmax(-1).to(dtype))


def test_float64_that_was_float32_is_named() -> None:
    """Sums of float32 are off by more than float64 allows; how much is up to the processor."""
    row = torch.tensor([[0.5, 0.5 + 2**-20]], dtype=torch.float64)
    assert "computed in float32? atol=1.1e-05 fits that" in hint_of(row)
    assert_row_stochastic(row, atol=1.1e-5)
    assert "computed in float32" not in hint_of(row + 2**-40)
    assert "computed in float32" not in hint_of(row * 1.5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_limit_of_a_row_sum(dtype: torch.dtype, sign: int) -> None:
    limit = tolerance_for(dtype).row_sum
    row = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    inside, outside = row.clone(), row.clone()
    inside[0, 0] += sign * limit * 0.9
    outside[0, 0] += sign * limit * 1.6
    # Half-precision numbers are sparse: judge what the sum became, and expect the verdict for it.
    for given_row in (inside.to(dtype), outside.to(dtype)):
        wrong = abs(float(given_row.double().sum()) - 1) > limit
        assert check_row_stochastic(given_row).passed is not wrong
    assert not check_row_stochastic(outside.to(dtype)).passed


def test_a_given_atol_is_used_for_sums_and_negatives() -> None:
    weights = torch.tensor([[0.6, 0.5, -0.05]])
    with pytest.raises(CheckFailure):
        assert_row_stochastic(weights, atol=0.04)
    assert_row_stochastic(weights, atol=0.06)


def test_sums_are_taken_in_float64() -> None:
    weights = torch.full((1, 8192), 1 / 8192, dtype=torch.float16)
    assert_row_stochastic(weights)
    assert not check_row_stochastic(weights * 1.02).passed
    # 1.003 is 1 if the sum itself is rounded to bfloat16.
    rounded = torch.tensor([[0.5, 0.25, 0.125, 0.125, 0.003]], dtype=torch.bfloat16)
    assert float(rounded.sum()) == 1
    assert not check_row_stochastic(rounded, atol=1e-3).passed


def test_counts_and_worst_row_equal_plain_loops() -> None:
    weights = random_weights(2, 3, 5, 6)
    weights[1, 0, 2] *= 1.5
    weights[0, 0, 4] *= 0.9
    weights[0, 2, 1, 3] = math.nan
    weights[1, 2, 0] = torch.tensor([-0.5, 1.5, 0, 0, 0, 0])
    finding = check_row_stochastic(weights)
    assert finding.verdict == "not row-stochastic: 4 of 30 rows, 1 with NaN"
    found = {offender.head: offender for offender in finding.offenders}
    assert list(found) == ["L0H2", "L0H0"]
    assert found["L0H0"].values == (2, 0, 0)
    assert found["L0H2"].values == (0, 1, 1)
    assert found["L0H0"].worst == "sum 1.5"
    assert (found["L0H0"].at.batch, found["L0H0"].at.query) == (1, 2)
    assert found["L0H2"].worst == "NaN"
    assert (found["L0H2"].at.batch, found["L0H2"].at.query) == (0, 1)
    assert finding.n_passed == 1


def test_learned_sink_belongs_to_the_row() -> None:
    weights = random_weights(1, 2, 4, 4) * 0.75
    sink = torch.full((1, 2, 4), 0.25)
    assert_row_stochastic(LayerAttention(weights, sink_mass=sink))
    finding = check_row_stochastic(LayerAttention(weights * 1.1, sink_mass=sink))
    assert "attn.sum(-1) + sink - 1" in finding.rule
    assert not finding.passed
    assert "learned sink" in hint_of(weights)


def test_nan_rows_are_told_apart() -> None:
    weights = causal_weights(1, 2, 4)
    weights[:, :, 0] = math.nan
    with pytest.raises(CheckFailure, match="2 of 8 rows, 2 with NaN") as caught:
        assert_row_stochastic(weights)
    assert "masked_rows='nan'" in str(caught.value)
    inside = causal_weights(1, 2, 4)
    inside[0, 0, 2, 1] = math.inf
    assert "overflow" in hint_of(inside)


@pytest.mark.parametrize("value", ["zero", "nan"])
def test_masked_rows(value: str) -> None:
    weights = causal_weights(1, 2, 4)
    weights[:, :, 0] = 0 if value == "zero" else math.nan
    mask = torch.tensor([0, 1, 1, 1])
    other = "nan" if value == "zero" else "zero"
    for options in ({}, {"mask": mask, "causal": True}):
        blind = bool(options) and value == "zero"  # finite, and the mask says that it sees no key
        assert check_row_stochastic(weights, **options).passed is blind  # type: ignore[arg-type]
        assert check_row_stochastic(weights, masked_rows=value, **options).passed  # type: ignore[arg-type]
        assert not check_row_stochastic(weights, masked_rows=other, **options).passed  # type: ignore[arg-type]


def test_a_masked_row_that_attends_is_wrong_even_if_it_sums_to_one() -> None:
    weights = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    mask = torch.tensor([[True, True], [False, False]])[None, None]
    assert check_row_stochastic(weights, mask=mask).passed
    finding = check_row_stochastic(weights, mask=mask, masked_rows="zero")
    assert finding.offenders[0].at.query == 1
    weights[1] = 0
    assert check_row_stochastic(weights, mask=mask, masked_rows="zero").passed
    weights[0] = 0
    assert not check_row_stochastic(weights, mask=mask, masked_rows="zero").passed


def test_rows_that_the_layers_own_mask_blinds_hold_anything_finite() -> None:
    """A left-padded batch of a causal model: padded queries see nothing, and backends fill them."""
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    mask[..., 0] = False
    for value, passes in ((0, True), (0.25, True), (9, True), (math.nan, False), (math.inf, False)):
        weights = causal_weights(1, 2, 4)
        weights[:, :, :, 0] = 0
        weights /= weights.sum(-1, keepdim=True)
        weights[:, :, 0] = value
        finding = check_row_stochastic(LayerAttention(weights, mask=mask))
        assert finding.passed is passes
        assert dict(finding.facts)["masked"] == "2 rows see no key"
        assert not check_row_stochastic(weights).passed or value == 0.25
        assert check_row_stochastic(LayerAttention(weights, mask=mask), masked_rows="any").passed
    weights[:, :, 0] = 0
    weights[0, 1, 2] *= 2
    finding = check_row_stochastic(LayerAttention(weights, mask=mask))
    assert [(one.head, one.at.query) for one in finding.offenders] == [("L0H1", 2)]
    with pytest.raises(ValueError, match="every row of layer 0 is fully masked"):
        assert_row_stochastic(LayerAttention(weights, mask=mask & False))


def test_masked_rows_of_any_kind_are_left_out_but_no_others() -> None:
    mask = torch.tensor([0, 1, 1, 1])
    for value in (0, math.nan, 0.25, 9):
        weights = causal_weights(1, 2, 4)
        weights[:, :, 0] = value
        assert check_row_stochastic(weights, mask=mask, causal=True, masked_rows="any").passed
        weights[0, 1, 2] *= 2
        finding = check_row_stochastic(weights, mask=mask, causal=True, masked_rows="any")
        assert [(one.head, one.at.query) for one in finding.offenders] == [("L0H1", 2)]


def test_verdicts_of_long_runs_fit_one_line() -> None:
    weights = torch.full((30, 40, 9, 9), math.nan)
    assert (
        check_row_stochastic(weights).verdict == "not row-stochastic: 10.8k of 10.8k rows, NaN too"
    )


def test_masked_rows_arguments() -> None:
    with pytest.raises(
        ValueError, match="masked_rows: got 'ok'; expected one of error, zero, nan, any"
    ):
        assert_row_stochastic(torch.eye(2), masked_rows="ok")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="every row of layer 0 is fully masked"):
        assert_row_stochastic(torch.zeros(2, 2), masked_rows="zero")


def test_defects_are_named() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 4, 8, 8, generator=generator)
    assert "softmax ran over queries" in hint_of(scores.softmax(-2))
    assert "softmax ran over heads" in hint_of(scores.softmax(1))
    assert "look like scores" in hint_of(scores)
    keep = (torch.rand(2, 4, 8, 8, generator=generator) > 0.2) / 0.8
    assert "dropout" in hint_of(scores.softmax(-1) * keep)
    padded = torch.nn.functional.pad(scores.softmax(-1), (0, 4), value=0.01)
    assert "the first 8 keys sum to 1: the last 4" in hint_of(padded)
    mask = torch.arange(12) < 8
    assert "visible keys alone sum to 1" in hint_of(padded, mask=mask)
    assert "masked_rows='zero'" in hint_of(torch.zeros(1, 1, 2, 2))
    assert "sums to 2: scaled" in hint_of(scores.softmax(-1) * 2)
    signed = scores.softmax(-1).clone()
    signed[0, 0, 0, 0] *= -1
    assert "below 0" in hint_of(signed)
    one = scores.softmax(-1).clone()
    one[0, 0, 3, 1] += 0.3
    assert "scaled after softmax" in hint_of(one)


def test_a_stray_weight_is_not_taken_for_padding() -> None:
    weights = causal_weights(1, 1, 16)
    weights[0, 0, 2, 7] = 0.04
    assert "padding" not in hint_of(weights)


@given(data=st.data())
def test_a_planted_row_is_found_where_it_was_planted(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 4)] * 4), label="shape")
    weights = random_weights(*shape, seed=data.draw(st.integers(0, 99)))
    batch, head, query = (data.draw(st.integers(0, size - 1)) for size in shape[:3])
    weights[batch, head, query] *= data.draw(st.sampled_from([0.5, 1.01, 3.0]), label="factor")
    finding = check_row_stochastic(weights)
    assert [offender.head for offender in finding.offenders] == [f"L0H{head}"]
    at = finding.offenders[0].at
    assert (at.batch, at.query) == (batch if shape[0] > 1 else None, query)
    assert finding.offenders[0].values == (1, 0, 0)
    assert max(map(len, render(finding).splitlines())) <= 72
