"""Attention the slow way: float64, one row at a time, shared with no code of the library."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn


def reference_weights(
    query: Tensor,
    key: Tensor,
    *,
    scale: float | None = None,
    sees: Callable[[int, int, int, int], bool] = lambda b, h, i, j: True,
    bias: Callable[[int, int, int, int], float] = lambda b, h, i, j: 0.0,
) -> np.ndarray:
    """Weights ``(batch, head, query, key)``; key heads repeat in blocks; blind rows are zero."""
    q, k = query.detach().double().numpy(), key.detach().double().numpy()
    batch, heads, n_query, size = q.shape
    n_key = k.shape[2]
    group = heads // k.shape[1]
    scale = 1 / math.sqrt(size) if scale is None else scale
    weights = np.zeros((batch, heads, n_query, n_key))
    for b in range(batch):
        for h in range(heads):
            for i in range(n_query):
                seen = [j for j in range(n_key) if sees(b, h, i, j)]
                scores = [
                    float(q[b, h, i] @ k[b, h // group, j]) * scale + bias(b, h, i, j) for j in seen
                ]
                shift = max(scores, default=0.0)
                parts = [math.exp(score - shift) for score in scores]
                for j, part in zip(seen, parts, strict=True):
                    weights[b, h, i, j] = part / sum(parts)
    return weights


def softmax_rows(scores: np.ndarray) -> np.ndarray:
    """Weights of scores over their last axis."""
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


class Heads(nn.Module):
    """Projects ``(batch, length, 16)`` into four heads, lets a function attend, projects back.

    The query and key of the last call stay in ``last``, so that a test can compute from them.
    """

    def __init__(
        self,
        attend: Callable[[Heads, Tensor, Tensor, Tensor], Tensor],
        num_heads: int = 4,
        num_key_value_heads: int | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.size = 16 // num_heads
        kv_heads = num_key_value_heads or num_heads
        self.query = nn.Linear(16, 16)
        self.key = nn.Linear(16, kv_heads * self.size)
        self.value = nn.Linear(16, kv_heads * self.size)
        self.out = nn.Linear(16, 16)
        self.drop = nn.Dropout(0.5)
        self.attend = attend
        self.last: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))

    def split(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (-1, self.size)).transpose(1, 2)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        source = x if context is None else context
        query, key, value = (
            self.split(self.query(x)),
            self.split(self.key(source)),
            self.split(self.value(source)),
        )
        self.last = (query, key)
        return self.out(self.attend(self, query, key, value).transpose(1, 2).flatten(2))


def stack(attend: Callable[[Heads, Tensor, Tensor, Tensor], Tensor], depth: int = 2) -> nn.Module:
    """A few layers of one kind."""
    torch.manual_seed(0)
    return nn.Sequential(*(Heads(attend) for _ in range(depth)))


def close(weights: Tensor, expected: np.ndarray) -> bool:
    """Whether weights equal a reference to 1e-6."""
    assert tuple(weights.shape) == expected.shape
    return bool(np.abs(weights.detach().double().numpy() - expected).max() < 1e-6)
