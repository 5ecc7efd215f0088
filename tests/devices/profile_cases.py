"""Layers that hold query and key, of every kind that a measure depends on."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from attncheck.attention import LayerAttention, QueryKey
from attncheck.evaluate import profile_layer
from attncheck.profile import LayerProfile
from tests.evaluate.agreement import with_weights

BATCH, HEADS, SIZE = 2, 2, 32
KINDS = (
    "bidirectional",
    "causal",
    "padding",
    "left padding causal",
    "window",
    "grouped",
    "sinks",
    "softcap",
    "bias",
    "cross",
    "last queries",
    "holes",
    "additive",
    "tokens",
    "segments",
    "delimiters",
    "sharp",
)
TOKENS = ("tokens", "delimiters")


class Case:
    """A layer in float32 on the CPU, and what is told of its keys."""

    def __init__(self, kind: str, n: int) -> None:
        self.kind, self.n = kind, n
        self.generator = torch.Generator().manual_seed(n)
        n_query = {"cross": n // 2 + 1, "last queries": n // 3 + 1}.get(kind, n)
        shared = 1 if kind == "grouped" else HEADS
        self.query = self.normal(BATCH, HEADS, n_query, SIZE) * (12 if kind == "sharp" else 2)
        self.key = self.normal(BATCH, shared, n, SIZE)
        self.key_heads = tuple(head * shared // HEADS for head in range(HEADS))
        if kind == "tokens":
            self._look_back()
        self.causal = kind not in ("bidirectional", "padding", "cross", "holes", "segments")
        self.mask = self._mask(n_query)
        self.options = self._options()

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def _look_back(self) -> None:
        """Let head 0 copy by induction, head 1 look at duplicates, as far as noise lets them."""
        codes = self.normal(self.n // 3 + 1, SIZE)
        own = codes[self._numbers()]
        self.query = self.query / 4 + own[None, None] * 1.5
        after = own.roll(1, 0)
        self.key = self.key / 4 + torch.stack([after, own])[None]

    def _numbers(self) -> Tensor:
        return torch.arange(self.n) % (self.n // 3 + 1)

    def _mask(self, n_query: int) -> Tensor | None:
        behind = torch.arange(n_query)[:, None] + (self.n - n_query) - torch.arange(self.n)
        short = torch.tensor([self.n, self.n - self.n // 4])[:, None]
        pad = (torch.arange(self.n) < short)[:, None, None]
        masks = {
            "padding": pad,
            "left padding causal": pad.flip(-1),
            "window": (behind < max(2, self.n // 6))[None, None],
            "holes": torch.rand(BATCH, 1, n_query, self.n, generator=self.generator) < 0.7,
        }
        return masks.get(self.kind)

    def _options(self) -> dict[str, Any]:
        if self.kind == "tokens":
            return {"tokens": [str(number) for number in self._numbers().tolist()]}
        if self.kind == "delimiters":
            words = ["|" if place % 5 == 2 else f"w{place % 9}" for place in range(self.n)]
            return {"tokens": [words, words[::-1]], "delimiters": ["|"]}
        if self.kind == "segments":
            return {"segment_ids": [place * 3 // self.n for place in range(self.n)]}
        return {}

    def layer(self, dtype: torch.dtype, device: torch.device) -> LayerAttention:
        n_query, part = self.query.shape[2], self.kind
        mask = None if self.mask is None else self.mask.to(device)
        kernel_mask = mask
        seen = torch.ones(n_query, self.n).tril(self.n - n_query).bool()[None, None]
        if part == "additive":
            kernel_mask = torch.zeros(seen.shape).masked_fill(~seen, -math.inf)
        elif part == "last queries":
            kernel_mask = seen
        own = torch.Generator().manual_seed(7)
        bias = torch.randn(1, HEADS, n_query, self.n, generator=own) if part == "bias" else None
        sinks = torch.randn(1, HEADS, 1, 1, generator=own) if part == "sinks" else None
        moved = [None if held is None else held.to(device) for held in (bias, sinks, kernel_mask)]
        return LayerAttention(
            QueryKey(
                query=self.query.to(device, dtype),
                key=self.key.to(device, dtype),
                key_heads=self.key_heads,
                scale=SIZE**-0.5,
                softcap=2.0 if part == "softcap" else None,
                bias=moved[0],
                sinks=moved[1],
                mask=moved[2],
                causal=self.causal and part not in ("additive", "last queries"),
            ),
            kind="cross" if part == "cross" else "self",
            mask=mask,
            causal=self.causal,
            n_key_value_heads=self.key.shape[1],
        )


@cache
def case(kind: str, n: int) -> Case:
    return Case(kind, n)


@cache
def reference(kind: str, n: int, dtype: torch.dtype) -> LayerProfile:
    """Profile float64 weights of the same rounded query and key densely, on the CPU."""
    held = case(kind, n)
    exact = with_weights(held.layer(dtype, torch.device("cpu")))
    assert exact.weights.dtype == torch.float64
    return profile_layer(exact, **held.options)
