"""The summary statistics: against plain loops, in closed form, and where formulas break."""

from __future__ import annotations

import math
import statistics as plain
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given

from attncheck.attention import AttentionMaps, LayerAttention
from attncheck.metrics import compute_attention_statistics
from tests.metrics.cases import layers
from tests.metrics.reference import reference

KEYS = {
    "mean",
    "std",
    "max",
    "min",
    "diagonal_mean",
    "diagonal_std",
    "mean_entropy",
    "max_entropy",
    "normalized_entropy",
    "sparsity_gini",
    "effective_tokens",
}


def causal_uniform(n: int) -> torch.Tensor:
    return torch.ones(n, n).tril() / torch.arange(1, n + 1)[:, None]


def by_loops(layer: LayerAttention, b: int, h: int) -> dict[str, float]:
    """Statistics of one matrix from lists of Python floats."""
    visible = layer.visible().expand(layer.weights.shape)[b, h].tolist()
    weights = layer.weights[b, h].tolist()
    rows = [i for i, counts in enumerate(layer.valid_rows()[b, h].tolist()) if counts]
    seen = [w for i in rows for w, s in zip(weights[i], visible[i], strict=True) if s]
    own = []
    if layer.positional:
        shift = layer.n_key - layer.n_query
        own = [weights[i][i + shift] for i in rows if i + shift >= 0]
    highest = [math.log(sum(visible[i])) for i in rows]

    def mean(values: list[float]) -> float:
        return plain.fmean(values) if values else math.nan

    found = {
        "mean": mean(seen),
        "std": plain.pstdev(seen) if seen else math.nan,
        "max": max(seen, default=math.nan),
        "min": min(seen, default=math.nan),
        "diagonal_mean": mean(own),
        "diagonal_std": plain.pstdev(own) if own else math.nan,
        "max_entropy": mean(highest),
    }
    for key, measure in {
        "mean_entropy": "entropy",
        "normalized_entropy": "normalized_entropy",
        "sparsity_gini": "gini",
        "effective_tokens": "effective_keys",
    }.items():
        values = reference(measure, layer)[b, h].tolist()
        found[key] = mean([value for value in values if not math.isnan(value)])
    return found


@given(layer=layers())
def test_statistics_equal_the_loops(layer: LayerAttention) -> None:
    found = compute_attention_statistics(layer)
    assert set(found) == KEYS
    for b in range(layer.batch):
        for h in range(layer.n_heads):
            for key, expected in by_loops(layer, b, h).items():
                assert found[key][b, h] == pytest.approx(expected, abs=1e-9, nan_ok=True), key


@pytest.mark.parametrize("n", [4, 8, 16, 64, 512])
def test_causal_uniform_is_uniform(n: int) -> None:
    found = compute_attention_statistics(causal_uniform(n))
    assert found["normalized_entropy"] == pytest.approx(1, abs=2e-7)
    assert found["sparsity_gini"] == pytest.approx(0, abs=1e-6)
    assert found["effective_tokens"] == pytest.approx((n + 1) / 2)
    assert found["mean_entropy"] == pytest.approx(found["max_entropy"])
    assert found["min"] == pytest.approx(1 / n)
    assert found["mean"] == pytest.approx(2 / (n + 1))
    assert found["diagonal_mean"] == pytest.approx(math.fsum(1 / k for k in range(1, n + 1)) / n)


def test_a_single_key_has_no_evenness_and_raises_nothing() -> None:
    found = compute_attention_statistics(torch.ones(1, 1))
    assert math.isnan(found["normalized_entropy"])
    assert math.isnan(found["sparsity_gini"])
    expected = {"mean": 1, "std": 0, "max": 1, "min": 1, "diagonal_mean": 1, "diagonal_std": 0}
    expected |= {"mean_entropy": 0, "max_entropy": 0, "effective_tokens": 1}
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_exact_zeros(dtype: torch.dtype) -> None:
    found = compute_attention_statistics(torch.eye(16, dtype=dtype), causal=False)
    assert found["mean_entropy"] == found["normalized_entropy"] == 0
    assert found["sparsity_gini"] == found["effective_tokens"] == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_uniform(dtype: torch.dtype) -> None:
    found = compute_attention_statistics(torch.full((64, 64), 1 / 64, dtype=dtype))
    assert found["normalized_entropy"] == pytest.approx(1, abs=2e-7)
    assert found["sparsity_gini"] == 0
    assert found["std"] == 0


@pytest.mark.parametrize("shape", [(6, 12), (12, 6), (1, 16)])
def test_other_than_square_has_no_diagonal(shape: tuple[int, int]) -> None:
    found = compute_attention_statistics(torch.full(shape, 1 / shape[1]))
    if shape == (1, 16):  # One query after 16 keys: a decoding step if causal, else unknown.
        assert found["normalized_entropy"] == pytest.approx(1)
    else:
        assert math.isnan(found["diagonal_mean"])
        assert math.isnan(found["diagonal_std"])
    assert found["effective_tokens"] == pytest.approx(shape[1])


def test_padding_does_not_dilute() -> None:
    weights = torch.softmax(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)), -1)
    padded = torch.zeros(9, 9)
    padded[:5, :5] = weights
    mask = torch.tensor([1, 1, 1, 1, 1, 0, 0, 0, 0])
    alone = compute_attention_statistics(weights)
    together = compute_attention_statistics(padded, mask=mask)
    assert together == pytest.approx(alone)


@pytest.mark.parametrize(
    ("attention", "shape"),
    [
        (torch.full((3, 4, 4), 0.25), (3,)),
        (torch.full((2, 3, 4, 4), 0.25), (2, 3)),
        (torch.full((5, 2, 3, 4, 4), 0.25), (5, 2, 3)),
        (np.full((3, 4, 4), 0.25), (3,)),
        ([[[0.5, 0.5], [0.5, 0.5]]], (1,)),
        ([torch.full((4, 4), 0.25)], (1, 1, 1)),
        ({"attentions": (torch.full((2, 3, 4, 4), 0.25),) * 5}, (5, 2, 3)),
        (LayerAttention(torch.full((1, 3, 4, 4), 0.25)), (1, 3)),
        (AttentionMaps([LayerAttention(torch.full((1, 3, 4, 4), 0.25))]), (1, 1, 3)),
        (torch.full((1, 1, 4, 4), 0.25, requires_grad=True), (1, 1)),
    ],
)
def test_shape_is_that_of_the_leading_dimensions(attention: Any, shape: tuple[int, ...]) -> None:
    found = compute_attention_statistics(attention)
    assert all(values.shape == shape for values in found.values())


@pytest.mark.parametrize("one", [torch.eye(3), np.eye(3), [[1.0, 0.0], [0.0, 1.0]]])
def test_a_single_matrix_gives_floats(one: Any) -> None:
    assert all(type(value) is float for value in compute_attention_statistics(one).values())


def test_layers_with_fewer_heads_are_filled_with_nan() -> None:
    attention = [torch.full((1, heads, 4, 4), 0.25) for heads in (2, 3)]
    found = compute_attention_statistics(attention)["max"]
    assert np.isnan(found).tolist() == [[[False, False, True]], [[False, False, False]]]


def test_a_head_without_a_valid_row_has_no_statistics() -> None:
    weights = torch.zeros(2, 3, 3)
    weights[1] = torch.eye(3)
    found = compute_attention_statistics(weights, causal=False)
    for key, values in found.items():
        assert np.isnan(values).tolist() == [True, False], key


@pytest.mark.parametrize("bad", [torch.randn(4, 4), torch.ones(4, 4), torch.eye(4) * torch.nan])
def test_what_is_no_attention_is_an_error(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="attention: "):
        compute_attention_statistics(bad)


def test_std_of_equal_weights_is_zero() -> None:
    """Squares taken around zero would leave the rounding of a large cancellation."""
    weights = torch.full((300, 300), 1 / 300)
    assert compute_attention_statistics(weights)["std"] < 1e-9
