"""NaN among weights is told as NaN, whatever was to be judged."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from attncheck.attention import LayerAttention
from attncheck.checks import (
    assert_attention_close,
    assert_causal,
    assert_entropy,
    assert_heads_distinct,
    assert_mask_respected,
    assert_pattern,
    assert_row_stochastic,
    assert_segments_isolated,
    assert_sink_mass,
    assert_sliding_window,
    check_attention_close,
    check_causal,
    render,
)
from attncheck.errors import CheckFailure
from tests.checks.samples import causal_weights

PADDING = torch.tensor([1, 1, 1, 1, 1, 1, 0, 0])

RULES: list[Callable[[Any], None]] = [
    assert_causal,
    lambda attn: assert_sliding_window(attn, 3),
    lambda attn: assert_mask_respected(attn, PADDING),
    lambda attn: assert_segments_isolated(attn, [0, 0, 0, 1, 1, 1, 1, 1]),
    lambda attn: assert_attention_close(attn, causal_weights()),
    lambda attn: assert_attention_close(attn, attn),
    lambda attn: assert_attention_close(attn, attn, atol=1.0),
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("value", "word"), [(math.nan, "NaN"), (math.inf, "inf")])
@pytest.mark.parametrize("key", [1, 6])
def test_rules_about_weights_tell_it(
    rule: Callable[[Any], None], value: float, word: str, key: int
) -> None:
    weights = causal_weights()
    weights[1, 2, 3, key] = value
    with pytest.raises(CheckFailure, match=rf"^{word} in 1 of \d\d rows") as caught:
        rule(weights)
    finding = caught.value.finding
    assert [offender.head for offender in finding.offenders] == ["L0H2"]
    assert (finding.offenders[0].at.batch, finding.offenders[0].at.query) == (1, 3)
    assert finding.evidence.offending.sum() == 1
    assert finding.n_passed == 3
    assert "overflow" in finding.hints[0]


@pytest.mark.parametrize(
    "measure",
    [
        lambda attn: assert_entropy(attn, min=0.1),
        lambda attn: assert_sink_mass(attn, min=0.1),
        lambda attn: assert_pattern(attn, "local", min_mass=0.1),
        assert_heads_distinct,
    ],
)
def test_measures_of_weights_refuse_it(measure: Callable[[Any], None]) -> None:
    weights = causal_weights()
    weights[1, 2, 3] = math.nan
    with pytest.raises(ValueError, match="attn: has NaN or infinite values, first in row"):
        measure(weights)
    with pytest.raises(CheckFailure, match="1 with NaN"):
        assert_row_stochastic(weights)


def test_fully_masked_rows_are_named_and_may_be_left_out() -> None:
    weights = causal_weights(1, 2, 4)
    weights[:, :, 0] = math.nan
    finding = check_causal(weights)
    assert finding.verdict == "NaN in 2 of 8 rows"
    assert "pass mask=" in finding.hints[0]
    assert max(map(len, render(finding).splitlines())) <= 72
    assert_causal(weights, mask=torch.tensor([0, 1, 1, 1]))
    hidden = torch.ones(4, 4, dtype=torch.bool)
    hidden[0] = False
    assert_sliding_window(LayerAttention(weights, mask=hidden[None, None]), (3, 0))


def test_the_same_nan_in_both_is_no_difference_and_no_agreement() -> None:
    sound = causal_weights(1, 2, 4)
    spoiled = sound.clone()
    spoiled[:, 0] = math.nan
    told = {
        (spoiled, spoiled): ("attn", "not finite in the same rows"),
        (spoiled, sound): ("attn", "finite"),
        (sound, spoiled): ("expected", None),
    }
    for (one, other), (name, fact) in told.items():
        finding = check_attention_close(one, other)
        assert finding.verdict == "NaN in 4 of 8 rows"
        assert finding.name == name
        assert dict(finding.facts).get("expected") == fact
    spoiled[:, 1, 3] = math.nan
    worse = check_attention_close(sound.masked_fill(sound == sound[0, 0, 1, 0], math.nan), spoiled)
    assert dict(worse.facts)["expected"] == "not finite in 5 rows"
