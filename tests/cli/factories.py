"""Models for the command line to scan, each reached as ``tests.cli.factories:name``."""

from __future__ import annotations

import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Self-attention written out, with one thing wrong on request."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project, self.fault = nn.Linear(8, 24), fault

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.project(x).chunk(3, -1)
        weights = (query @ key.transpose(-1, -2)).softmax(-1)
        if self.fault == "interrupt":
            raise KeyboardInterrupt
        if self.fault == "nan":
            weights = weights * float("nan")
        return weights @ value


class Sleeper(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        print("sleeping", file=sys.stderr, flush=True)
        time.sleep(60)
        return x


class Reader(nn.Module):
    """Takes token ids; one layer of causal attention with two heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, 8)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids).unflatten(-1, (2, 4)).transpose(1, 2)
        return F.scaled_dot_product_attention(x, x, x, is_causal=True)


def encoder() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(2, 10, 8)


def many_heads() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.MultiheadAttention(80, 40, batch_first=True), (3 * torch.randn(1, 12, 80),) * 3


def chatty() -> tuple[nn.Module, Tensor]:
    print("loading ...")
    return encoder()


def reader() -> nn.Module:
    return Reader()


def reader_with_inputs() -> tuple[nn.Module, dict[str, Tensor]]:
    return Reader(), {"input_ids": torch.arange(10)[None]}


def nan() -> tuple[nn.Module, Tensor]:
    return Attention("nan"), torch.randn(1, 9, 8)


def interrupted() -> tuple[nn.Module, Tensor]:
    return Attention("interrupt"), torch.randn(1, 9, 8)


def sleeper() -> tuple[nn.Module, Tensor]:
    return Sleeper(), torch.ones(1)


def no_attention() -> tuple[nn.Module, Tensor]:
    return nn.Linear(2, 2), torch.ones(1, 2)


def wrong_inputs() -> tuple[nn.Module, Tensor]:
    return Attention(), torch.ones(1, 9, 7)


def not_a_model() -> int:
    return 3


def choosy(size: int) -> nn.Module:
    return nn.Linear(size, size)


def raising() -> nn.Module:
    raise FileNotFoundError("no checkpoint\nhere")
