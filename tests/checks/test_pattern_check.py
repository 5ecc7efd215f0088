"""Heads that must show a pattern."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attncheck.attention import AttentionMaps, LayerAttention
from attncheck.checks import assert_pattern, check_pattern, render
from attncheck.errors import CheckFailure
from attncheck.patterns import PATTERNS, create_synthetic_attention, tokens_with_repeats
from tests.checks.samples import random_weights


def previous(strength: float, n: int = 16) -> torch.Tensor:
    return create_synthetic_attention(
        n, "previous_token", 0, causal=True, strength=strength, dtype=torch.float64
    )


HEADS = torch.stack([previous(0.2), previous(0.9), previous(0.6)])


def mass_by_loops(weights: torch.Tensor) -> float:
    rows = [float(weights[q, q - 1]) for q in range(1, len(weights))]
    return sum(rows) / len(rows)


def test_mass_is_that_of_plain_loops_and_its_bound_inclusive() -> None:
    for head in range(3):
        mass = mass_by_loops(HEADS[head])
        assert_pattern(HEADS, "previous_token", min_mass=mass, heads=head, atol=1e-12)
        finding = check_pattern(HEADS, "prev", min_mass=mass + 1e-6, heads=head)
        assert not finding.passed
        assert finding.offenders[0].values[0] == pytest.approx(mass)


def test_without_heads_one_is_enough_with_heads_all_must() -> None:
    assert_pattern(HEADS, "previous_token", min_mass=0.85)
    with pytest.raises(CheckFailure, match="previous_token lacking: 2 of 3 heads"):
        assert_pattern(HEADS, "previous_token", min_mass=0.85, heads=[0, 1, 2])
    assert_pattern(HEADS, "previous_token", min_mass=0.5, heads=["L0H1", "L0H2"])
    assert_pattern(HEADS, "previous_token", min_mass=0.5, at_least=2)
    assert_pattern(HEADS, "previous_token", min_mass=0.5, at_least=np.int64(2))  # type: ignore[arg-type]
    with pytest.raises(CheckFailure, match="lacking: 1 of 3"):
        assert_pattern(HEADS, "previous_token", min_mass=0.5, at_least=3)


def test_order_is_worst_first_if_all_must_and_nearest_first_if_one_must() -> None:
    every = check_pattern(HEADS, "prev", min_mass=0.99, heads=[0, 1, 2])
    assert [offender.head for offender in every.offenders] == ["L0H0", "L0H2", "L0H1"]
    some = check_pattern(HEADS, "prev", min_mass=0.99)
    assert [offender.head for offender in some.offenders] == ["L0H1", "L0H2", "L0H0"]
    assert some.verdict == f"no previous_token head: best L0H1 mass {mass_by_loops(HEADS[1]):.4f}"
    assert "mass  chance" in render(some)
    assert len(some.verdict) <= 48


def test_lift_is_judged_beside_mass() -> None:
    uniform = torch.ones(4, 4).tril()
    uniform = uniform / uniform.sum(-1, keepdim=True)
    assert_pattern(uniform, "first_token", min_mass=0.3)
    finding = check_pattern(uniform, "first_token", min_mass=0.3, min_lift=0.1)
    assert not finding.passed
    assert finding.offenders[0].worst == pytest.approx(0, abs=1e-6)
    assert "mass >= 0.3 and lift >= 0.1" in finding.rule


def test_label_is_judged_where_no_number_is_given() -> None:
    weights = create_synthetic_attention(32, "previous_token", 0.05, causal=True, seed=0)
    assert_pattern(weights, "previous_token")
    finding = check_pattern(weights, "first_token")
    assert finding.rule == "label == first_token in at least 1 head"
    assert finding.offenders[0].worst == "previous_token"
    assert finding.columns[-1] == "label"


def test_a_label_that_is_refused_says_why() -> None:
    finding = check_pattern(torch.eye(5), "diagonal")
    assert finding.verdict == "no diagonal head: L0H0 is undetermined"
    assert "L0H0: 4 usable rows, 8 positions needed" in render(finding)


def test_mass_that_any_head_has_counts_for_nothing() -> None:
    weights = random_weights(1, 3, 16, 16)
    for options in ({}, {"segment_ids": [0] * 16}):
        finding = check_pattern(weights, "block", min_mass=0.8, **options)  # type: ignore[arg-type]
        assert not finding.passed
        assert finding.offenders[0].values == pytest.approx((1, 1), abs=1e-6)
        assert "chance 1: block would take in every visible key" in finding.hints[0]
    halves = torch.block_diag(torch.full((8, 8), 1 / 8), torch.full((8, 8), 1 / 8))
    assert_pattern(halves, "block", min_mass=0.8)


def test_tokens_make_induction_scorable() -> None:
    tokens = tokens_with_repeats(24)
    weights = create_synthetic_attention(24, "induction", 0, causal=True, tokens=tokens)
    assert_pattern(weights, "induction", min_mass=0.99, tokens=tokens, causal=True)
    with pytest.raises(ValueError, match="needs tokens"):
        assert_pattern(weights, "induction", min_mass=0.5)
    with pytest.raises(ValueError, match="no row has a key that induction looks at"):
        assert_pattern(weights, "induction", min_mass=0.5, tokens=list(range(24)), causal=True)


def test_layers_in_which_a_pattern_means_nothing_are_left_out() -> None:
    cross = LayerAttention(random_weights(1, 2, 16, 16), index=1, kind="cross")
    own = LayerAttention(HEADS[None], causal=True)
    finding = check_pattern(AttentionMaps([own, cross]), "previous_token", min_mass=0.5)
    assert finding.n_total == 3
    with pytest.raises(ValueError, match="needs positions"):
        check_pattern(cross, "previous_token", min_mass=0.5)


@pytest.mark.parametrize("pattern", [name for name in PATTERNS if name != "delimiter"])
def test_every_pattern_of_the_catalogue_can_be_asserted(pattern: str) -> None:
    entry = PATTERNS[pattern]
    causal = entry.direction != "bidirectional"
    tokens = tokens_with_repeats(24) if entry.requires == "tokens" else None
    weights = create_synthetic_attention(24, pattern, 0, causal=causal, tokens=tokens)
    assert_pattern(weights, pattern, min_mass=0.8, tokens=tokens, causal=causal)


@pytest.mark.parametrize(
    ("pattern", "options", "error", "message"),
    [
        ("nonsense", {}, ValueError, "unknown name 'nonsense'"),
        ("mixed", {}, ValueError, "is a verdict about a head"),
        ("prev", {"min_mass": 1.2}, ValueError, "min_mass: got 1.2"),
        ("prev", {"min_lift": -1}, ValueError, "min_lift: got -1"),
        ("prev", {"at_least": 4}, ValueError, "at_least: got 4; expected 1 to 3"),
        (
            "prev",
            {"at_least": 1.0},
            TypeError,
            "at_least: 1.0 is float; expected a number of heads",
        ),
        ("prev", {"heads": "L7"}, ValueError, "no head 'L7'"),
    ],
)
def test_wrong_arguments(
    pattern: str, options: dict[str, float], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        assert_pattern(HEADS, pattern, **options)  # type: ignore[arg-type]
