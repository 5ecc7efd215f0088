"""A small decoder in plain torch with everything that goes wrong in one, wrong on request."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOW = 4
DEPTH = 2
FEATURES = 16
VOCABULARY = 40

Cache = list[tuple[Tensor, Tensor]]


class Attention(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.query = nn.Linear(FEATURES, FEATURES)
        self.key = nn.Linear(FEATURES, FEATURES)
        self.value = nn.Linear(FEATURES, FEATURES)
        self.out = nn.Linear(FEATURES, FEATURES)

    def forward(
        self, x: Tensor, hidden: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        query, key, value = (
            project(x).unflatten(-1, (2, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        if past is not None:
            old = past[0].roll(1, 2) if self.fault == "cache order" else past[0]
            key, value = torch.cat([old, key], 2), torch.cat([past[1], value], 2)
        seen = key.detach() if self.fault == "detached key" else key
        scores = query @ seen.transpose(-1, -2) / query.shape[-1] ** 0.5
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
        weights = scores.softmax(2 if self.fault == "softmax dim" else -1)
        if self.fault == "dropout":
            weights = F.dropout(weights, 0.1)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        return self.out(mixed), (key, value)


class Block(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.norm = nn.LayerNorm(FEATURES)
        self.attn = Attention(fault)
        self.mlp = nn.Sequential(nn.Linear(FEATURES, 32), nn.GELU(), nn.Linear(32, FEATURES))

    def forward(
        self, x: Tensor, hidden: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        held = self.norm(x)
        if self.fault == "batch norm":
            held = held - held.mean(0, keepdim=True)
        if self.fault == "sequence mean":
            held = held - held.mean(1, keepdim=True)
        if self.fault == "future":
            hidden = hidden & False
        mixed, kept = self.attn(held, hidden, past)
        x = x + mixed
        return x + self.mlp(self.norm(x)), kept


class Decoder(nn.Module):
    """Token ids to vectors; ``fault`` names what is wrong, ``layer`` where (-1: everywhere)."""

    def __init__(self, fault: str = "", layer: int = 1, window: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fault, self.window = fault, window
        self.embed = nn.Embedding(VOCABULARY, FEATURES)
        self.place = nn.Embedding(64, FEATURES)
        self.blocks = nn.ModuleList(
            Block(fault if layer in (number, -1) else "") for number in range(DEPTH)
        )
        self.calls = 0

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        cache: Cache | None = None,
    ) -> tuple[Tensor, Cache]:
        before = 0 if cache is None else cache[0][0].shape[2]
        length = input_ids.shape[1]
        shift = int(self.fault == "cache position" and before > 0)
        if position_ids is None or self.fault == "left positions":
            position_ids = torch.arange(length) + before - shift
        x = self.embed(input_ids)
        if self.fault != "no positions":
            x = x + self.place(position_ids)
        if self.fault == "state":
            x = x + 0.01 * self.calls
            self.calls += 1
        hidden = self.hidden(length, before, attention_mask, segment_ids)
        kept: Cache = []
        for number, block in enumerate(self.blocks):
            x, pair = block(x, hidden, None if cache is None else cache[number])
            kept.append(pair)
        return x, kept

    def hidden(
        self, length: int, before: int, mask: Tensor | None, segments: Tensor | None
    ) -> Tensor:
        queries = torch.arange(before, before + length)[:, None]
        keys = torch.arange(before + length)[None, :]
        hidden = keys > queries
        if self.window is not None:
            edge = self.window + (self.fault == "window + 1") - (self.fault == "window - 1")
            hidden = hidden | (keys <= queries - edge)
        hidden = hidden[None, None]
        if mask is not None and self.fault != "padding mask":
            hidden = hidden | ~mask.bool()[:, None, None, :]
        if segments is not None and self.fault != "segments":
            hidden = hidden | (segments[:, None, :, None] != segments[:, None, None, :])
        return hidden


def step(model: nn.Module, chunk: Tensor, cache: Any) -> tuple[Any, Any]:
    """Continue from a cache."""
    output, cache = model(chunk, cache=cache)
    return output, cache


def token_ids(length: int = 12, batch: int = 3) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(1, VOCABULARY, (batch, length))
