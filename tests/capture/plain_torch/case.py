"""One case: a module, its inputs, and what a capture of it must bring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.capture.reference import reference_weights

Attend = Callable[..., Tensor]
Sees = Callable[[int, int, int, int], bool]

BATCH, HEADS, LENGTH, SIZE = 2, 4, 6, 4
WIDTH = HEADS * SIZE


@dataclass(frozen=True)
class Case:
    """A module to capture and the weights, one array per layer, that it must show."""

    make: Callable[[], tuple[nn.Module, tuple[Any, ...]]]
    expected: Callable[[nn.Module, tuple[Any, ...]], list[np.ndarray]]
    options: dict[str, Any] = field(default_factory=dict)
    train: bool = False
    atol: float = 1e-6


class Attending(nn.Module):
    """Projects into heads, attends by a given function, projects back; remembers query and key."""

    def __init__(self, attend: Attend, kv_heads: int = HEADS, value_size: int = SIZE) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, kv_heads * SIZE)
        self.value = nn.Linear(WIDTH, kv_heads * value_size)
        self.out = nn.Linear(HEADS * value_size, WIDTH)
        self.shape = kv_heads, value_size
        self.attend = attend
        self.drop = nn.Dropout(0.5)
        self.softmax = nn.Softmax(dim=-1)
        self.last: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        source = x if context is None else context
        kv_heads, value_size = self.shape
        query = self.query(x).unflatten(-1, (HEADS, SIZE)).transpose(1, 2)
        key = self.key(source).unflatten(-1, (kv_heads, SIZE)).transpose(1, 2)
        value = self.value(source).unflatten(-1, (kv_heads, value_size)).transpose(1, 2)
        self.last = (query, key)
        return self.out(self.attend(self, query, key, value).transpose(1, 2).flatten(2))


def inputs(*lengths: int) -> tuple[Tensor, ...]:
    """Random sequences, ``(2, length, 16)``."""
    torch.manual_seed(1)
    return tuple(torch.randn(BATCH, length, WIDTH) for length in lengths or (LENGTH,))


def always(b: int, h: int, i: int, j: int) -> bool:
    return True


def past(b: int, h: int, i: int, j: int) -> bool:
    return j <= i


def attending(
    attend: Attend,
    *,
    lengths: tuple[int, ...] = (LENGTH,),
    kv_heads: int = HEADS,
    value_size: int = SIZE,
    scale: float | None = None,
    sees: Sees = always,
    bias: Callable[[int, int, int, int], float] = lambda b, h, i, j: 0.0,
    train: bool = False,
    dtype: torch.dtype = torch.float32,
    atol: float = 1e-6,
) -> Case:
    """Make a case of one attention function on ``(batch, head, length, size)``."""

    def make() -> tuple[nn.Module, tuple[Any, ...]]:
        torch.manual_seed(0)
        model = Attending(attend, kv_heads, value_size).to(dtype)
        return model.train(train), tuple(x.to(dtype) for x in inputs(*lengths))

    def expected(model: nn.Module, args: tuple[Any, ...]) -> list[np.ndarray]:
        assert isinstance(model, Attending)
        return [reference_weights(*model.last, scale=scale, sees=sees, bias=bias)]

    return Case(make, expected, train=train, atol=atol)
