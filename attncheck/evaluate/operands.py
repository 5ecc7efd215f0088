"""`Operands`: query, key and what else makes scores, as kernels take them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor

from attncheck.attention import QueryKey
from attncheck.evaluate.scores import Scores
from attncheck.kernels.launch import next_power

__all__ = ["Operands"]

LOG2E: Final = 1.4426950408889634


@lru_cache(maxsize=64)
def _on(device: torch.device, numbers: tuple[int, ...]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=device)


@dataclass(frozen=True, eq=False)
class Operands:
    """What scores are made of.

    Attributes:
        query: ``(batch, head, query, size)``.
        key: ``(batch, key-value head, key, size)``, of one dtype with the query.
        key_heads: The key-value head of each head, int32.
        scale: Factor on products.
        scores: What else makes the scores: a cap, learned sinks.
    """

    query: Tensor
    key: Tensor
    key_heads: Tensor
    scale: float
    scores: Scores

    @classmethod
    def of(cls, record: QueryKey, scores: Scores, batch: slice) -> Operands:
        """Take some sequences of a layer."""
        sides = [
            held.expand(record.shape[0], -1, -1, -1)[batch] for held in (record.query, record.key)
        ]
        half = {held.dtype for held in sides} in ({torch.float16}, {torch.bfloat16})
        query, key = (
            held if held.stride(-1) == 1 else held.contiguous()
            for held in (sides if half else [held.to(torch.float32) for held in sides])
        )
        return cls(query, key, _on(query.device, tuple(record.key_heads)), record.scale, scores)

    @property
    def units(self) -> tuple[float, float]:
        """Factor on products and cap of scores, in units of log 2; see `shape_scores`."""
        softcap = self.scores.softcap
        if softcap is None:
            return self.scale * LOG2E, 0.0
        return 2 * self.scale / softcap * LOG2E, softcap * LOG2E

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of query and key."""
        return *self.query.stride()[:3], *self.key.stride()[:3]

    @property
    def compiled_for(self) -> dict[str, Any]:
        """What a kernel is compiled for."""
        size = self.query.shape[-1]
        return {
            "SIZE": size,
            "WIDTH": max(16, next_power(size)),
            "SOFTCAP": self.scores.softcap is not None,
            "PRECISION": "ieee",
        }
