"""Rollout against plain loops, its closed forms and its chance level."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from attncheck.attention import LayerAttention
from attncheck.metrics import attention_rollout


def random_stack(layers: int, batch: int, heads: int, n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(layers, batch, heads, n, n, generator=generator, dtype=torch.float64)
    return torch.softmax(scores * 2, -1)


def causal_uniform(n: int) -> torch.Tensor:
    return torch.ones(n, n).tril().double() / torch.arange(1, n + 1)[:, None]


def by_loops(stack: torch.Tensor, batch: int, residual: float, fuse: Any) -> list[list[float]]:
    layers, _, heads, n, _ = stack.shape
    rolled = [[float(i == j) for j in range(n)] for i in range(n)]
    for layer in range(layers):
        mixed = []
        for i in range(n):
            row = []
            for j in range(n):
                held = [stack[layer, batch, h, i, j].item() for h in range(heads)]
                row.append((1 - residual) * fuse(held) + residual * (i == j))
            mixed.append([x / sum(row) for x in row])
        rolled = [
            [sum(mixed[i][k] * rolled[k][j] for k in range(n)) for j in range(n)] for i in range(n)
        ]
    return rolled


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@given(
    layers=st.integers(1, 3),
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    n=st.integers(1, 4),
    residual=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_rollout_equals_the_loops(
    fusion: Any, layers: int, batch: int, heads: int, n: int, residual: float, seed: int
) -> None:
    stack = random_stack(layers, batch, heads, n, seed)
    found = attention_rollout(stack, residual=residual, head_fusion=fusion, causal=False)
    fuse = {"mean": lambda held: sum(held) / len(held), "max": max, "min": min}[fusion]
    assert found.shape == (batch, n, n)
    for b in range(batch):
        expected = torch.tensor(by_loops(stack, b, residual, fuse), dtype=torch.float64)
        assert_close(found[b], expected, atol=1e-12, rtol=0)


def test_order_is_first_layer_first() -> None:
    first, second = torch.eye(3).roll(1, 0), torch.eye(3).flip(0)
    found = attention_rollout([first, second], residual=0.0)
    assert torch.equal(found[0], (second @ first).double())
    assert not torch.equal(second @ first, first @ second)


@given(
    layers=st.integers(1, 4),
    n=st.integers(1, 6),
    fusion=st.sampled_from(["mean", "max", "min"]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_rows_sum_to_one(layers: int, n: int, fusion: Any, dtype: torch.dtype) -> None:
    stack = random_stack(layers, 2, 2, n, 0).to(dtype)
    found = attention_rollout(stack, head_fusion=fusion)
    assert_close(found.sum(-1), torch.ones(2, n, dtype=torch.float64), atol=1e-12, rtol=0)


def test_causal_uniform_rolls_to_the_first_token() -> None:
    found = attention_rollout([causal_uniform(6)] * 200)[0]
    assert float(found[:, 0].min()) > 1 - 1e-6
    shares = [attention_rollout([causal_uniform(6)] * depth)[0, -1, 0] for depth in (1, 2, 4, 8)]
    assert shares[0] == pytest.approx(1 / 12)
    assert shares == sorted(shares)


def test_chance_is_the_rollout_of_uniform_attention() -> None:
    stack = random_stack(3, 1, 2, 5, 1).tril()
    stack = stack / stack.sum(-1, keepdim=True)
    found = attention_rollout(stack, chance=True)
    assert_close(found, attention_rollout([causal_uniform(5)] * 3), atol=1e-12, rtol=0)
    assert not torch.allclose(found, attention_rollout(stack))


def test_padding_changes_nothing_and_keeps_its_place() -> None:
    stack = random_stack(3, 1, 2, 4, 2)
    padded = torch.zeros(3, 1, 2, 6, 6, dtype=torch.float64)
    padded[..., 2:, 2:] = stack
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    for chance in (False, True):
        found = attention_rollout(padded, mask=mask, chance=chance, causal=False)
        plain = attention_rollout(stack, chance=chance, causal=False)
        assert_close(found[:, 2:, 2:], plain, atol=1e-12, rtol=0)
        assert torch.equal(found[0, :2], torch.eye(6, dtype=torch.float64)[:2])


def test_padding_without_residual_keeps_its_place_too() -> None:
    padded = torch.zeros(3, 3)
    padded[:2, :2] = 0.5
    found = attention_rollout(padded, mask=torch.tensor([[1, 1, 0]]), residual=0.0)
    assert found[0].tolist() == [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (torch.full((2, 3), 1 / 3), r"layer 0 is not square, \(query, key\) = \(2, 3\)"),
        (LayerAttention(torch.eye(3)[None, None], kind="cross"), "layer 0 is cross-attention"),
    ],
)
def test_only_self_attention(attention: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention_rollout(attention)


def test_options_out_of_range() -> None:
    with pytest.raises(ValueError, match="residual: 2; expected a share"):
        attention_rollout(torch.eye(3), residual=2)
    with pytest.raises(ValueError, match="head_fusion: 'sum'; expected one of mean, max, min"):
        attention_rollout(torch.eye(3), head_fusion="sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="head_fusion: \\['max'\\]; expected one of"):
        attention_rollout(torch.eye(3), head_fusion=["max"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="residual: got str; expected a share, 0 to 1"):
        attention_rollout(torch.eye(3), residual="half")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="chance: got Tensor; expected True or False"):
        attention_rollout(torch.eye(3), chance=torch.ones(2))  # type: ignore[arg-type]


def test_layers_of_other_lengths() -> None:
    from attncheck.attention import AttentionMaps

    maps = AttentionMaps([LayerAttention(torch.eye(n)[None, None]) for n in (3, 4)])
    with pytest.raises(ValueError, match=r"layers differ in \(batch, key\)"):
        attention_rollout(maps)
