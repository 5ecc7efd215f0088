"""Attention that a module computes by itself, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncheck import AttentionExtractor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

ONE = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(5))
"""One sequence of six tokens."""


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def written(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return weights_of(q, k) @ v


class Written(nn.Module):
    """Does what it is told; the number of its heads is kept where nobody looks for it."""

    def __init__(self, forward: Callable[..., Tensor], declares: int = 0) -> None:
        super().__init__()
        self.run = forward
        if declares:
            self.num_heads = declares

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        return self.run(x) if other is None else self.run(x, other)


def heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def weights_of(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)


def merged(out: Tensor) -> Tensor:
    return out.transpose(1, 2).flatten(2)


def require(model: nn.Module, args: tuple[Tensor, ...], *expected: Tensor, note: str = "") -> None:
    layers = AttentionExtractor(model).get_attention(*args).layers
    assert [tuple(layer.weights.shape) for layer in layers] == [tuple(w.shape) for w in expected]
    for layer, weights in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer.weights, weights, rtol=0, atol=1e-6)
        assert note in layer.note
        assert bool(note) == bool(layer.note)
