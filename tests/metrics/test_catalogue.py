"""The catalogue itself: read-only, complete, and the door to per-row values."""

from __future__ import annotations

import pytest
import torch

from attncheck.metrics import METRICS, row_measures


def test_the_catalogue_is_read_only() -> None:
    with pytest.raises(TypeError):
        METRICS["entropy"] = METRICS["gini"]  # type: ignore[index]


def test_every_entry_says_what_it_is() -> None:
    assert len(METRICS) == 10
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.unit in {"share", "nats", "keys", "tokens"}
        assert metric.summary
        assert metric.source


def test_only_the_row_sum_error_is_a_maximum() -> None:
    assert {name for name, metric in METRICS.items() if metric.reduce == "max"} == {"row_sum_error"}


def test_rows_show_a_head_that_looks_back_only_early() -> None:
    """Three rows look at the key before; the mean distance of the head hides it."""
    n = 8
    weights = torch.eye(n)
    weights[1:4] = torch.eye(n).roll(-1, -1)[1:4]
    rows = row_measures(weights, "mean_distance")[0][0, 0]
    assert rows.tolist() == [0, 1, 1, 1, 0, 0, 0, 0]


def test_one_tensor_per_layer() -> None:
    layers = [torch.softmax(torch.randn(2, 3, 4, 4), -1) for _ in range(2)]
    rows = row_measures(layers, "entropy")
    assert [tuple(values.shape) for values in rows] == [(2, 3, 4), (2, 3, 4)]


def test_an_unknown_measure_is_named() -> None:
    with pytest.raises(ValueError, match=r"measure: no 'entropie'; the measures are row_sum_error"):
        row_measures(torch.eye(3), "entropie")


@pytest.mark.parametrize("bad", ["nan", "scores", "unnormalised"])
def test_what_is_no_attention_is_an_error(bad: str) -> None:
    weights = {
        "nan": torch.tensor([[1.0, 0.0], [torch.nan, 1.0]]),
        "scores": torch.tensor([[1.0, -2.0], [0.3, 4.0]]),
        "unnormalised": torch.ones(2, 2),
    }[bad]
    with pytest.raises(ValueError, match="attention: "):
        row_measures(weights, "entropy")
