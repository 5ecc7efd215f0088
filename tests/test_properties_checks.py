"""Every check of weights: its verdict follows the weights, whatever is permuted or padded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from attncheck.attention import LayerAttention
from attncheck.checks import CHECKS, Finding, render
from attncheck.strategies import attention_layers, attention_shapes, attention_weights
from tests.layer_changes import evened, padded, with_batch, with_heads

Run = Callable[[LayerAttention], Finding]

SQUARE = attention_shapes(min_length=2)
LAYERS = attention_layers(shape=SQUARE, masks=["full", "window", "segments"], dtype=torch.float64)
CAUSAL = attention_weights(shape=SQUARE, causal=True, dtype=torch.float64)


def run(name: str, **arguments: object) -> Run:
    return lambda layer: CHECKS[name].run(layer, **arguments)


JUDGES: dict[str, Run] = {
    "row_stochastic": run("row_stochastic", masked_rows="zero"),
    "causal": run("causal"),
    "sliding_window": run("sliding_window", window=1),
    "mask_respected": lambda layer: CHECKS["mask_respected"].run(
        layer, layer.visible().expand(layer.weights.shape)
    ),
    "segments_isolated": lambda layer: CHECKS["segments_isolated"].run(
        layer, [int(j >= layer.n_key // 2) for j in range(layer.n_key)]
    ),
    "entropy": run("entropy", min=0.3, max=0.9),
    "sink_mass": run("sink_mass", max=0.5),
    "pattern": run("pattern", pattern="previous_token", min_mass=0.4),
    "heads_distinct": run("heads_distinct", min_distance=0.2),
    "attention_close": lambda layer: CHECKS["attention_close"].run(layer, evened(layer, 0.05)),
}
"""Each check with arguments under which it sometimes passes and sometimes fails."""


def verdict(judge: Run, layer: LayerAttention) -> tuple[bool, int]:
    """Whether it passed and how many heads offend; no offenders where there is nothing to judge."""
    try:
        finding = judge(layer)
    except ValueError as error:
        if not any(words in str(error) for words in ("nothing to judge", "no row of")):
            raise
        return True, 0
    assert finding.passed or render(finding)
    return finding.passed, len(finding.offenders)


def test_every_check_is_judged() -> None:
    assert set(JUDGES) == set(CHECKS)


@pytest.mark.parametrize("name", JUDGES)
@given(data=st.data(), layer=LAYERS)
def test_permuting_heads_and_batch_changes_no_verdict(
    name: str, data: st.DataObject, layer: LayerAttention
) -> None:
    heads = data.draw(st.permutations(range(layer.n_heads)))
    batch = data.draw(st.permutations(range(layer.batch)))
    layer = with_heads(layer, range(layer.n_heads))
    changed = with_batch(with_heads(layer, heads), batch)
    assert verdict(JUDGES[name], changed) == verdict(JUDGES[name], layer)


@pytest.mark.parametrize("name", sorted(set(JUDGES) - {"segments_isolated"}))
@given(layer=LAYERS, left=st.integers(0, 2), right=st.integers(0, 2))
def test_padding_with_a_mask_changes_no_verdict(
    name: str, layer: LayerAttention, left: int, right: int
) -> None:
    layer = with_heads(layer, range(layer.n_heads))
    assert verdict(JUDGES[name], padded(layer, left, right)) == verdict(JUDGES[name], layer)


@pytest.mark.parametrize("name", JUDGES)
def test_every_check_both_passes_and_fails_on_what_is_drawn(name: str) -> None:
    seen = set()

    @settings(max_examples=250)
    @given(LAYERS)
    def judge(layer: LayerAttention) -> None:
        seen.add(verdict(JUDGES[name], layer)[0])

    judge()
    certain = {"row_stochastic", "mask_respected"}
    assert seen == ({True} if name in certain else {True, False})


@given(CAUSAL, st.data(), st.sampled_from([0.5, 1e-3, 1e-6]))
def test_one_weight_on_a_later_key_is_found_where_it_is(
    weights: Tensor, data: st.DataObject, stolen: float
) -> None:
    batch, heads, n, _ = weights.shape
    place = [data.draw(st.integers(0, size - 1)) for size in (batch, heads, n - 1)]
    sequence, head, query = place
    key = data.draw(st.integers(query + 1, n - 1))
    assert CHECKS["causal"].run(weights).passed
    weights[sequence, head, query] *= 1 - stolen
    weights[sequence, head, query, key] = stolen
    finding = CHECKS["causal"].run(weights)
    assert not finding.passed
    assert [offender.head for offender in finding.offenders] == [f"L0H{head}"]
    at = finding.offenders[0].at
    assert (at.batch or 0, at.query, at.key) == (sequence, query, key)
    assert CHECKS["row_stochastic"].run(weights).passed


@given(CAUSAL, st.data(), st.sampled_from([0.9, 1.01, 0.0, float("nan")]))
def test_one_row_that_is_no_distribution_is_found_where_it_is(
    weights: Tensor, data: st.DataObject, factor: float
) -> None:
    place = [data.draw(st.integers(0, size - 1)) for size in weights.shape[:3]]
    sequence, head, query = place
    weights[sequence, head, query] *= factor
    finding = CHECKS["row_stochastic"].run(weights)
    assert not finding.passed
    assert [offender.head for offender in finding.offenders] == [f"L0H{head}"]
    at = finding.offenders[0].at
    assert (at.batch or 0, at.query) == (sequence, query)


@given(attention_layers(shape=SQUARE, masks=["full"], dtype=torch.float64))
def test_causal_is_a_window_that_reaches_back_for_ever(layer: LayerAttention) -> None:
    window = CHECKS["sliding_window"].run(layer, (layer.n_key, 0))
    assert window.passed == CHECKS["causal"].run(layer).passed


@given(attention_weights(shape=SQUARE, dtype=torch.float64), st.integers(0, 4))
def test_a_wider_window_admits_what_a_narrow_one_does(weights: Tensor, width: int) -> None:
    layer = LayerAttention(weights, kind="self")
    narrow, wide = (
        verdict(run("sliding_window", window=(w, w)), layer)[0] for w in (width, width + 1)
    )
    assert wide or not narrow
    distances = (torch.arange(weights.shape[-1])[:, None] - torch.arange(weights.shape[-1])).abs()
    assert narrow == bool((weights[..., distances > width] <= 1e-7).all())


@pytest.mark.parametrize("name", ["entropy", "sink_mass"])
@given(weights=CAUSAL, one=st.integers(0, 20), other=st.integers(0, 20))
def test_a_looser_bound_admits_what_a_tight_one_does(
    name: str, weights: Tensor, one: int, other: int
) -> None:
    low, high = sorted((one / 20, other / 20))
    judge = CHECKS[name].run
    assert not judge(weights, min=high).passed or judge(weights, min=low).passed
    assert not judge(weights, max=low).passed or judge(weights, max=high).passed
    within = judge(weights, min=low, max=high).passed
    assert within == (judge(weights, min=low).passed and judge(weights, max=high).passed)


@given(attention_weights("previous_token", shape=SQUARE, causal=True, noise=0.5), st.data())
def test_a_smaller_demand_admits_what_a_larger_one_does(
    weights: Tensor, data: st.DataObject
) -> None:
    low, high = sorted(data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20))))
    judge = CHECKS["pattern"].run
    demanded = judge(weights, "previous_token", min_mass=high / 20, causal=True)
    if demanded.passed:
        assert judge(weights, "previous_token", min_mass=low / 20, causal=True).passed


@given(LAYERS, st.integers(1, 10))
def test_attention_is_close_to_itself_and_closeness_is_mutual(
    layer: LayerAttention, tenths: int
) -> None:
    judge = CHECKS["attention_close"].run
    assert judge(layer, layer).passed
    assert judge(layer, replace(layer, weights=layer.weights + 1e-9)).passed
    other = evened(layer, tenths / 10)
    away = judge(layer, other, max_variation=0.05).passed
    assert away == judge(other, layer, max_variation=0.05).passed


@given(attention_weights(shape=attention_shapes(min_length=2, max_heads=1), dtype=torch.float64))
def test_a_head_and_its_copy_are_not_distinct(weights: Tensor) -> None:
    twice = torch.cat([weights, weights], dim=1)
    assert not CHECKS["heads_distinct"].run(twice).passed


@given(attention_weights(shape=(1, 2, 4, 4), dtype=torch.float64))
def test_a_head_far_from_the_other_is_distinct(weights: Tensor) -> None:
    distance = (weights[:, 0] - weights[:, 1]).abs().sum(-1).mean() / 2
    assume(distance > 0.5)
    assert CHECKS["heads_distinct"].run(weights).passed
