"""A training run of a few seconds, with a place to plant a fault."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from attncheck import HeadMonitor
from attncheck.models import TinyTransformer

__all__ = ["batch_of", "head_rows", "train"]


def batch_of(generator: torch.Generator, size: int = 16, length: int = 24) -> Tensor:
    """Start token, then a short random cycle of distinct letters walked round and round."""
    ids = torch.zeros(size, length, dtype=torch.long)
    for row in ids:
        period = int(torch.randint(4, 12, (1,), generator=generator))
        cycle = 1 + torch.randperm(31, generator=generator)[:period]
        row[1:] = cycle[torch.arange(length - 1) % period]
    return ids


def train(
    seed: int = 0,
    steps: int = 100,
    fault: Callable[[TinyTransformer, int], None] | None = None,
    watch: Callable[[TinyTransformer], HeadMonitor] | None = None,
) -> tuple[TinyTransformer, HeadMonitor | None, list[float]]:
    """Train; a fault is called before every step."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = TinyTransformer().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    monitor = watch(model) if watch else None
    losses = []
    if monitor is not None:
        monitor.attach()
    for step in range(steps):
        if fault is not None:
            fault(model, step)
        ids = batch_of(generator)
        loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.item())
    if monitor is not None:
        monitor.detach()
    return model, monitor, losses


def head_rows(model: TinyTransformer, layer: int, head: int, part: int) -> Tensor:
    """Rows of the query (0), key (1) or value (2) map of one head."""
    weight = model.attention[layer].get_parameter("query_key_value.weight").data
    size = weight.shape[1] // 2
    start = part * weight.shape[1] + head * size
    return weight[start : start + size]
