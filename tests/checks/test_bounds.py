"""Entropy and sink mass within bounds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attncheck.attention import LayerAttention
from attncheck.checks import assert_entropy, assert_sink_mass, check_entropy, check_sink_mass
from attncheck.errors import CheckFailure
from attncheck.tolerances import tolerance_for
from tests.checks.samples import DTYPES, causal_weights, random_weights


def entropy_by_loops(weights: torch.Tensor, head: int, *, causal: bool, nats: bool) -> float:
    """Mean over rows of the entropy of one head, in plain Python."""
    values = []
    for b in range(weights.shape[0]):
        for q in range(weights.shape[2]):
            keys = range(q + 1) if causal else range(weights.shape[3])
            row = [float(weights[b, head, q, k]) for k in keys]
            entropy = -sum(p * math.log(p) for p in row if p > 0)
            if nats:
                values.append(entropy)
            elif len(row) >= 2:
                values.append(entropy / math.log(len(row)))
    return sum(values) / len(values)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("unit", ["normalized", "nats"])
def test_entropy_is_the_mean_over_rows_of_each_head(causal: bool, unit: str) -> None:
    weights = causal_weights(2, 3, 6) if causal else random_weights(2, 3, 6, 6)
    for head in range(3):
        value = entropy_by_loops(weights, head, causal=causal, nats=unit == "nats")
        assert_entropy(weights, min=value - 1e-4, max=value + 1e-4, unit=unit, heads=head)  # type: ignore[arg-type]
        assert not check_entropy(weights, max=value - 1e-4, unit=unit, heads=head).passed  # type: ignore[arg-type]
        finding = check_entropy(weights, min=value + 1e-4, unit=unit, heads=head)  # type: ignore[arg-type]
        assert not finding.passed
        assert finding.offenders[0].values[0] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_uniform_has_entropy_one_and_one_hot_zero(dtype: torch.dtype, causal: bool) -> None:
    uniform = torch.ones(16, 16, dtype=torch.float64)
    uniform = uniform.tril() if causal else uniform
    uniform = (uniform / uniform.sum(-1, keepdim=True)).to(dtype)
    assert_entropy(uniform, min=1, causal=causal)
    assert_entropy(torch.eye(16, dtype=dtype), max=0, causal=causal)
    assert not check_entropy(uniform, max=0.95, causal=causal).passed
    assert not check_entropy(torch.eye(16, dtype=dtype), min=0.05, causal=causal).passed


def test_the_mean_is_judged_not_the_worst_row() -> None:
    weights = torch.eye(8)
    weights[0] = 1 / 8
    assert_entropy(weights, max=0.2, causal=False)
    assert check_entropy(weights, max=0.1, causal=False).offenders[0].at.query == 0


def test_boundary_and_atol() -> None:
    weights = torch.tensor([[0.5, 0.5]]).double()
    slack = tolerance_for("float64").row_sum
    entropy = 1.0
    assert check_entropy(weights, min=entropy).passed
    half = torch.tensor([[0.25, 0.25, 0.5, 0.0]]).double()
    value = 1.5 * math.log(2)
    assert check_entropy(half, max=value - slack / 2, unit="nats").passed
    assert not check_entropy(half, max=value - 2 * slack, unit="nats").passed
    assert check_entropy(half, max=value - 0.1, unit="nats", atol=0.2).passed


def test_sink_mass_of_queries_behind_the_first_visible_key() -> None:
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.4, 0.0], [0.2, 0.4, 0.4]])
    assert_sink_mass(weights, min=0.4, max=0.4)
    assert check_sink_mass(weights, max=0.3).offenders[0].values[0] == pytest.approx(0.4)
    mask = torch.tensor([0, 1, 1])
    left = torch.tensor([[0.0, 0.5, 0.5], [0.0, 1.0, 0.0], [0.0, 0.7, 0.3]])
    assert_sink_mass(left, min=0.7, max=0.7, mask=mask)


def test_sink_mass_includes_a_learned_sink() -> None:
    weights = torch.full((1, 1, 4, 4), 0.125)
    layer = LayerAttention(weights, sink_mass=torch.full((1, 1, 4), 0.5))
    assert_sink_mass(layer, min=0.625, max=0.625)


def test_only_heads_outside_are_listed_furthest_first() -> None:
    weights = torch.zeros(1, 4, 8, 8)
    for head, mass in enumerate((0.2, 0.9, 0.4, 0.7)):
        weights[0, head] = (1 - mass) / 7
        weights[0, head, :, 0] = mass
    finding = check_sink_mass(weights, max=0.5)
    assert [offender.head for offender in finding.offenders] == ["L0H1", "L0H3"]
    assert finding.offenders[0].values == pytest.approx((0.9, 0.4))
    assert finding.verdict == "sink mass outside bounds: 2 of 4 heads"
    assert finding.rule == "mean over rows of sink mass <= 0.5"
    assert {o.head for o in check_sink_mass(weights, min=0.3, max=0.8).offenders} == {
        "L0H0",
        "L0H1",
    }
    assert_sink_mass(weights, max=0.5, heads=["L0H0", "L0H2"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "min, max: neither is given"),
        ({"min": 0.5, "max": 0.4}, ValueError, r"min=0\.5 is above max=0\.4"),
        ({"max": 1.5}, ValueError, "max: got 1.5; this measure goes from 0 to 1"),
        ({"min": -0.1}, ValueError, "min: got -0.1"),
        ({"min": math.nan}, ValueError, "min: got nan"),
        ({"min": "0"}, TypeError, "min: got str"),
        ({"min": True}, TypeError, "min: got bool"),
    ],
)
def test_wrong_bounds(options: dict[str, float], error: type[Exception], message: str) -> None:
    for check in (assert_entropy, assert_sink_mass):
        with pytest.raises(error, match=message):
            check(torch.eye(4), **options)  # type: ignore[operator]


def test_wrong_units_inputs_and_nothing_to_judge() -> None:
    with pytest.raises(ValueError, match="unit: got 'bits'"):
        assert_entropy(torch.eye(4), min=0, unit="bits")  # type: ignore[arg-type]
    assert_entropy(torch.full((64, 64), 1 / 64), min=4.0, unit="nats")
    with pytest.raises(ValueError, match="look like scores"):
        assert_entropy(torch.randn(4, 4) - 9, min=0)
    with pytest.raises(ValueError, match="no row of L0H0 has entropy"):
        assert_entropy(torch.ones(1, 1), min=0)
    with pytest.raises(ValueError, match="no row of L0H0 has sink mass"):
        assert_sink_mass(torch.ones(1, 1), min=0)


@given(seed=st.integers(0, 999), order=st.permutations(range(4)))
def test_permuting_heads_permutes_offenders(seed: int, order: list[int]) -> None:
    weights = random_weights(1, 4, 5, 5, seed=seed)
    before = {o.head: o.values for o in check_entropy(weights, max=0.8).offenders}
    after = {o.head: o.values for o in check_entropy(weights[:, order], max=0.8).offenders}
    assert after == {
        f"L0H{place}": before[f"L0H{head}"]
        for place, head in enumerate(order)
        if f"L0H{head}" in before
    }


def test_failures_raise() -> None:
    with pytest.raises(CheckFailure, match="entropy outside bounds: 1 of 1 heads"):
        assert_entropy(torch.eye(4), min=0.5)
    with pytest.raises(CheckFailure, match="sink mass outside bounds: 1 of 1 heads"):
        assert_sink_mass(torch.eye(4), min=0.5)
