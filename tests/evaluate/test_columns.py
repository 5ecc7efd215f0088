"""Column sums against a sum over float64 weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from attncheck.attention import LayerAttention, QueryKey
from attncheck.evaluate import column_sums, columns, dispatch
from attncheck.kernels.launch import KernelError
from tests.evaluate.agreement import Drawn, layers, with_weights


def _expected(layer: LayerAttention) -> torch.Tensor:
    held = with_weights(layer)
    return (held.weights * held.valid_rows()[..., None]).sum(2)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(layers())
def test_sums_are_those_of_float64_weights(drawn: Drawn) -> None:
    expected = _expected(drawn.layer)
    bound = 1e-5 * drawn.layer.n_query
    torch.testing.assert_close(column_sums(drawn.layer), expected, rtol=0, atol=bound)
    held = with_weights(drawn.layer)
    torch.testing.assert_close(column_sums(held), expected, rtol=0, atol=1e-12 * held.n_query)


def test_they_are_found_block_by_block_where_kernels_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[bool] = []
    walk = columns.tallies_of

    def fails_first(*args: Any, fused: bool) -> Any:
        walks.append(fused)
        if fused:
            raise KernelError("no compiler")
        return walk(*args, fused=fused)

    monkeypatch.setitem(dispatch.LEAST, "cpu", 0)
    monkeypatch.setattr(dispatch, "unfit", lambda _: None)
    monkeypatch.setattr(columns, "tallies_of", fails_first)
    query, key = torch.randn(2, 1, 2, 90, 8, generator=torch.Generator().manual_seed(0))
    layer = LayerAttention(QueryKey(query, key, (0, 1), 1.0), causal=True)
    torch.testing.assert_close(column_sums(layer), _expected(layer), rtol=0, atol=1e-4)
    assert walks == [True, False]
