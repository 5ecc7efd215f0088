"""Experts mixed by a gate whose weight is computed from what is no input: no attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.capture.plain_torch.negative_cases import WIDTH

EXPERTS = 5


class Mixture(nn.Module):
    """Mixes experts by the softmax of a product with a weight that a function makes."""

    def __init__(self, weight: Callable[[Mixture], Tensor]) -> None:
        super().__init__()
        self.weight_of = weight
        self.gate = nn.Parameter(torch.randn(EXPERTS, WIDTH))
        self.down = nn.Parameter(torch.randn(2, WIDTH))
        self.up = nn.Parameter(torch.randn(EXPERTS, 2))
        self.register_buffer("codes", torch.randint(-8, 8, (EXPERTS, WIDTH), dtype=torch.int8))
        self.register_buffer("steps", torch.rand(EXPERTS, 1))
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        shares = (x @ self.weight_of(self).mT).softmax(-1)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-2)
        return torch.einsum("bte,bted->btd", shares, outputs)


def _filled(m: Mixture) -> Tensor:
    weight = torch.zeros(EXPERTS, WIDTH)
    weight[:] = m.gate / 2
    return weight


WEIGHTS: dict[str, Callable[[Mixture], Tensor]] = {
    "scaled": lambda m: m.gate * 3,
    "normalised": lambda m: F.normalize(m.gate, dim=-1),
    "merged with LoRA": lambda m: m.gate + m.up @ m.down,
    "dequantised": lambda m: m.codes.float() * m.steps,
    "cast": lambda m: m.gate.double().float(),
    "noisy": lambda m: m.gate + torch.randn_like(m.gate),
    "drawn anew": lambda m: torch.randn(EXPERTS, WIDTH),
    "a basis": lambda m: torch.outer(torch.arange(5.0), torch.arange(WIDTH)).cos(),
    "filled": _filled,
}


def _on(weight: Callable[[Mixture], Tensor]) -> Callable[[], tuple[nn.Module, tuple[Any, ...]]]:
    return lambda: (Mixture(weight), (torch.randn(2, 6, WIDTH),))


COMPUTED_WEIGHTS = {f"gate {name}": _on(weight) for name, weight in WEIGHTS.items()}
