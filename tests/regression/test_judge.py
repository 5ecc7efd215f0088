"""Which heads changed: permutations, leaks, tolerances, and the spread over runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attncheck import create_synthetic_attention, profile_attention
from attncheck.metrics import head_similarity, paired_distance
from attncheck.regression import HeadRecord, compare_captures, judge, open_capture, records_of
from attncheck.regression.judge import _cycles
from attncheck.regression.tolerance import ALLOWED, limit_of
from attncheck.tolerances import tolerance_for
from tests.checks.samples import causal_weights

PATTERNS = ("first_token", "previous_token", "diagonal", "uniform")


def heads(*patterns: str, seed: int = 0) -> Tensor:
    """One layer whose heads are these patterns, with noise of their own."""
    made = [
        create_synthetic_attention(20, name, 0.1, causal=True, seed=seed + number)
        for number, name in enumerate(patterns)
    ]
    return torch.stack(made)[None]


@given(order=st.permutations(range(4)))
def test_any_permutation_is_recognised(order: list[int]) -> None:
    before = heads(*PATTERNS)
    found = judge(
        records_of([profile_attention(before)]), records_of([profile_attention(before[:, order])])
    )
    moved = {place for place, head in enumerate(order) if place != head}
    assert {one.name for one in found.changed} == {f"L0H{place}" for place in moved}
    said = {old: new for cycle in found.permuted for old, new in cycle}
    assert said == {f"L0H{head}": f"L0H{order.index(head)}" for head in moved}


def test_a_permutation_is_not_invented() -> None:
    before = heads("first_token", "previous_token", "uniform")
    after = heads("uniform", "diagonal", "previous_token")
    found = judge(records_of([profile_attention(before)]), records_of([profile_attention(after)]))
    assert len(found.changed) == 3
    assert found.permuted == ()


def test_cycles_cover_everything_once() -> None:
    assert list(_cycles([1, 2, 0, 3, 5, 4])) == [[0, 1, 2], [3], [4, 5]]


def test_heads_that_came_and_went() -> None:
    before = records_of([profile_attention(heads(*PATTERNS))])
    found = judge(before, before[:2])
    assert (found.verdict, found.missing, found.extra) == ("changed", ("L0H2", "L0H3"), ())
    found = judge(before[:2], before)
    assert (found.verdict, found.missing, found.extra) == ("changed", (), ("L0H2", "L0H3"))


def test_the_smallest_leak_into_the_future_is_a_change() -> None:
    before = causal_weights(batch=1, n=12)
    after = before.clone()
    after[0, 1, 3, 4] += 1e-3
    after[0, 1, 3, 3] -= 1e-3
    profiles = [profile_attention(weights, causal=True) for weights in (before, after)]
    found = judge(*(records_of([profile]) for profile in profiles))
    assert [one.name for one in found.changed] == ["L0H1"]
    assert found.changed[0].moves[0].measure == "future_mass"


def test_a_measure_that_vanished_is_a_change() -> None:
    tokens = [1, 2, 3, 4, 5] * 4
    with_tokens = records_of([profile_attention(heads("uniform"), tokens=tokens)])
    without = records_of([profile_attention(heads("uniform"))])
    found = judge(with_tokens, without)
    assert found.verdict == "changed"
    assert {move.measure for move in found.changed[0].moves} == {"induction", "duplicate_token"}
    assert judge(without, with_tokens).verdict == "same"


def test_atol_for_all_and_by_name() -> None:
    before, after = (records_of([profile_attention(w)]) for w in (heads("uniform"), heads("local")))
    assert judge(before, after).verdict == "changed"
    assert judge(before, after, atol=100).verdict == "drifted"
    assert judge(before, after, atol=0).verdict == "changed"
    assert judge(before, before, atol=0).verdict == "same"
    named = {move.measure: 100.0 for move in judge(before, after).changed[0].moves}
    assert judge(before, after, atol=named).verdict == "drifted"
    del named["entropy"]
    found = judge(before, after, atol=named)
    assert [move.measure for move in found.changed[0].moves if move.ratio > 1] == ["entropy"]


@pytest.mark.parametrize(
    ("atol", "error", "message"),
    [
        (-1, ValueError, "atol: got -1; expected a number >= 0"),
        (float("nan"), ValueError, "atol: got nan"),
        ("1", TypeError, "atol: got str"),
        (True, TypeError, "atol: got bool"),
        ({"entropie": 1}, ValueError, "atol: no measure 'entropie'; the measures are row_sum"),
        ({"entropy": None}, TypeError, r"atol\['entropy'\]: got NoneType"),
    ],
)
def test_wrong_tolerances(atol: object, error: type[Exception], message: str) -> None:
    record = records_of([profile_attention(heads("uniform"))])
    with pytest.raises(error, match=message):
        judge(record, record, atol=atol)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_floors_follow_the_dtype(dtype: str) -> None:
    tolerance = tolerance_for(dtype)
    limit = limit_of("first_token", 0.0, 0.5, tolerance)
    assert limit.floor == pytest.approx(tolerance.total_variation, rel=1e-3, abs=1e-6)
    assert limit.allowed == ALLOWED >= limit.floor
    keys = limit_of("effective_keys", 10.0, 8.0, tolerance)
    assert keys.allowed == pytest.approx(20 * ALLOWED)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
def test_a_mass_moves_no_further_than_the_weights(seed: int, share: float) -> None:
    """What all tolerances rest on."""
    one, other = (causal_weights(1, 2, 12, seed=seed + k, dtype=torch.float64) for k in (0, 1))
    mixed = (1 - share) * one + share * other
    before, after = (records_of([profile_attention(w)]) for w in (one, mixed))
    apart = 0.5 * (one - mixed).abs().sum(-1)[0]
    for head, (old, new) in enumerate(zip(before, after, strict=True)):
        rows = float(apart[head].mean()) * 12 / 11 + 1e-12
        for name in ("first_token", "previous_token", "diagonal"):
            assert abs(old.values[name] - new.values[name]) <= rows
        for name in ("by_key", "by_distance"):
            places = old.shares[name].keys() | new.shares[name].keys()
            moved = [abs(old.shares[name].get(p, 0) - new.shares[name].get(p, 0)) for p in places]
            assert 0.5 * sum(moved) <= rows


def test_distances_against_plain_sums_and_head_similarity() -> None:
    one, other = causal_weights(2, 3, 9, seed=1), causal_weights(2, 3, 9, seed=2)
    maps = [open_capture(w).maps for w in (one, other)]
    assert maps[0] is not None
    assert maps[1] is not None
    found = paired_distance(maps[0].layers[0], maps[1].layers[0])
    plain = 0.5 * (one.double() - other.double()).abs().sum(-1).mean((0, 2))
    np.testing.assert_allclose(found.variation, plain, atol=1e-6)
    both = head_similarity(torch.cat([one, other], 1), causal=True).distance
    expected = [both[head, head + 3] * math.log(2) for head in range(3)]
    np.testing.assert_allclose(found.divergence, expected, atol=1e-6)


def test_stored_weights_see_what_measures_cannot() -> None:
    """Two columns of equal mass exchanged far from the query, within one bin of distances."""
    before = torch.full((1, 1, 64, 64), 0.0)
    before[..., 40] = 1.0
    after = torch.full_like(before, 0.0)
    after[..., 41] = 1.0
    captures = [open_capture(weights) for weights in (before, after)]
    found = compare_captures(*captures)
    assert found.judgement.verdict == "changed"
    assert {move.measure for move in found.judgement.changed[0].moves} >= {
        "variation",
        "divergence",
    }
    evidence = found.finding.evidence
    assert evidence is not None
    assert evidence.expected is not None
    assert evidence.expected[0, 40] == 1
    assert evidence.weights[0, 41] == 1
    assert evidence.offending[0].nonzero()[0].tolist() == [40, 41]


def drawn(generator: np.random.Generator, runs: int, shift: float = 0.0) -> list[HeadRecord]:
    """Means over runs of 40 heads whose entropy has a spread of its own."""
    found = []
    for head in range(40):
        scale = 0.02 * 1.1**head
        values = 2 + scale * generator.standard_normal(runs)
        if head == 7:
            values += shift * scale
        spread = {"entropy": float(values.std(ddof=1))} if runs > 1 else {}
        found.append(HeadRecord(f"L0H{head}", "x", {"entropy": float(values.mean())}, {}, spread))
    return found


@pytest.mark.parametrize(("before", "after"), [(3, 1), (5, 5), (12, 3)])
def test_spread_over_runs_keeps_false_alarms_rare(before: int, after: int) -> None:
    generator = np.random.default_rng(0)
    alarms = sum(
        judge(drawn(generator, before), drawn(generator, after), runs=(before, after)).verdict
        == "changed"
        for _ in range(200)
    )
    assert alarms <= 10
    missed = judge(drawn(generator, 5), drawn(generator, 5), runs=(5, 5)).changed
    assert missed == ()


def test_spread_over_runs_still_sees_a_shift() -> None:
    generator = np.random.default_rng(1)
    for _ in range(20):
        found = judge(drawn(generator, 8), drawn(generator, 8, shift=60.0), runs=(8, 8))
        assert [one.name for one in found.changed] == ["L0H7"]


def test_runs_are_checked() -> None:
    one = heads("uniform", "local")
    with pytest.raises(ValueError, match="runs: 2 captures in all; the spread needs at least 3"):
        open_capture(one, runs=[one])
    with pytest.raises(TypeError, match="runs: got Tensor"):
        open_capture(one, runs=one)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="runs: run 2 holds other heads than run 0"):
        open_capture(one, runs=[one, one[:, :1]])
    with pytest.raises(TypeError, match="attention: got nothing"):
        open_capture(None)
    held = open_capture(None, runs=[heads("uniform", "local", seed=seed) for seed in range(3)])
    assert held.runs == 3
    assert held.records[1].spread["entropy"] > 0
