"""Attention that the tests of checks share."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def causal_weights(
    batch: int = 2, heads: int = 4, n: int = 8, *, seed: int = 0, dtype: torch.dtype | None = None
) -> Tensor:
    """Random softmax rows under a causal mask."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(batch, heads, n, n, generator=generator, dtype=torch.float64)
    hidden = torch.ones(n, n, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return weights.to(dtype or torch.float32)


def random_weights(*shape: int, seed: int = 0) -> Tensor:
    """Random softmax rows, float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).softmax(-1)
