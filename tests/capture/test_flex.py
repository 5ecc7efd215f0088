"""Modules that call `flex_attention` themselves, unfused, as it runs without compilation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from attncheck import AttentionExtractor
from tests.capture.reference import Heads, close, reference_weights

N = 6
X = torch.randn(2, N, 16, generator=torch.Generator().manual_seed(1))
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")


def window(b: Any, h: Any, i: Any, j: Any) -> Any:
    return (j <= i) & (j > i - 3)


def distance(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return score - 0.1 * (h + 1) * (i - j)


def twice(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return 2 * score


def captured(**options: Any) -> tuple[Any, Heads]:
    def attend(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex_attention(q, k, v, **options)  # type: ignore[return-value]

    module = Heads(attend)
    return AttentionExtractor(module).get_attention(X).layers[0], module


def test_plain() -> None:
    layer, module = captured()
    assert close(layer.weights, reference_weights(*module.last))
    assert (layer.backend, layer.status) == ("flex_attention", "exact")


def test_block_mask() -> None:
    mask = create_block_mask(window, None, None, N, N, device="cpu")
    layer, module = captured(block_mask=mask, scale=0.7)
    expected = reference_weights(*module.last, scale=0.7, sees=lambda b, h, i, j: i - 3 < j <= i)
    assert close(layer.weights, expected)
    assert layer.causal
    assert torch.equal(layer.visible().expand_as(layer.weights), layer.weights > 0)


def test_score_function_of_positions_and_heads() -> None:
    layer, module = captured(score_mod=distance)
    bias = reference_weights(*module.last, bias=lambda b, h, i, j: -0.1 * (h + 1) * (i - j))
    assert close(layer.weights, bias)


def test_score_function_of_the_score_under_a_mask() -> None:
    mask = create_block_mask(window, None, None, N, N, device="cpu")
    layer, module = captured(score_mod=twice, block_mask=mask)
    expected = reference_weights(*module.last, scale=1.0, sees=lambda b, h, i, j: i - 3 < j <= i)
    assert close(layer.weights, expected)
