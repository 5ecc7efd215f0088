"""Measures in one read of the weights against the same measures block by block."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from attncheck.attention import LayerAttention
from attncheck.metrics import METRICS, measure_layer
from attncheck.metrics import metric as of_metric
from attncheck.metrics.metric import Metric, measure_in_blocks
from attncheck.metrics.rapid import KNOWN, measure_rapidly

pytest.importorskip("numba")

UNSORTED = [metric for metric in METRICS.values() if not metric.sorts]


def _layer(causal: bool, n_query: int = 520, **options: object) -> LayerAttention:
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(1, 4, n_query, 520, generator=generator)
    if causal:
        scores = scores.masked_fill(torch.ones(520, 520).triu(1).bool()[-n_query:], -math.inf)
    return LayerAttention(scores.softmax(-1), causal=causal, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ["self", "cross"])
def test_agrees_with_blocks_of_rows(causal: bool, kind: str, dtype: torch.dtype) -> None:
    layer = _layer(causal and kind == "self", kind=kind)
    weights = layer.weights.clone()
    weights[0, 1, 7] = 0
    sink = torch.rand(1, 4, 520) if kind == "self" else None
    if sink is not None:
        weights = weights * (1 - sink[..., None])
    layer = replace(layer, weights=weights.to(dtype), sink_mass=sink)
    found = measure_rapidly(layer, KNOWN)
    assert found is not None
    for name, (expected, valid) in measure_in_blocks(layer, UNSORTED).items():
        assert torch.equal(found[name][1], valid), name
        assert bool(found[name][0][~valid].isnan().all()), name
        longest = {"effective_keys": 520, "participation_ratio": 520, "mean_distance": 520}
        torch.testing.assert_close(
            found[name][0][valid], expected[valid], rtol=0, atol=4e-6 * longest.get(name, 1)
        )


def test_last_queries_of_a_cache_stand_at_the_end() -> None:
    layer = _layer(True, n_query=516)
    found, expected = measure_layer(layer, UNSORTED), measure_in_blocks(layer, UNSORTED)
    torch.testing.assert_close(
        found["mean_distance"], expected["mean_distance"], rtol=0, atol=1e-3, equal_nan=True
    )


def test_all_known_measures_are_the_ones_that_do_not_sort() -> None:
    assert {metric.name for metric in UNSORTED} == KNOWN


@pytest.mark.parametrize("value", [math.nan, -1e-3, math.inf])
def test_other_weights_are_left_to_blocks(value: float) -> None:
    layer = _layer(False)
    layer.weights[0, 2, 9, 9] = value
    assert measure_rapidly(layer, KNOWN) is None
    hidden = _layer(True)
    hidden.weights[0, 0, 3, 4] = 0.25
    assert measure_rapidly(hidden, KNOWN) is None
    assert measure_layer(hidden, UNSORTED)["future_mass"][0][0, 0, 3] == 0.25


def test_blocks_are_walked_for_what_sorts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    walked: list[str] = []

    def spy(layer: LayerAttention, metrics: tuple[Metric, ...]):
        walked.extend(metric.name for metric in metrics)
        return measure_in_blocks(layer, metrics)

    monkeypatch.setattr(of_metric, "measure_in_blocks", spy)
    assert list(measure_layer(_layer(True), METRICS.values())) == list(METRICS)
    assert walked == ["gini"]
    assert set(measure_layer(_layer(True), UNSORTED)) == KNOWN
    assert walked == ["gini"]


def test_what_it_cannot_read_it_does_not() -> None:
    layer = _layer(False)
    assert measure_rapidly(layer, ["gini"]) is None
    assert measure_rapidly(replace(layer, weights=layer.weights.double()), KNOWN) is None
    mask = torch.ones(1, 1, 1, 520, dtype=torch.bool)
    assert measure_rapidly(replace(layer, mask=mask), KNOWN) is None
    small = LayerAttention(torch.eye(8)[None, None])
    assert measure_rapidly(small, KNOWN) is None
    few = LayerAttention(
        torch.full((1, 4, 520, 1040), 1 / 1040),
        kind="self",
        queries=tuple(range(0, 1040, 2)),
        n_query_in_call=1040,
    )
    assert measure_rapidly(few, KNOWN) is None
