"""Extensions that change scores or who sees whom: window, softcap, ALiBi, sinks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attncheck.conformance.capabilities import Capabilities
from attncheck.conformance.extensions.extension import Extension, Variant
from attncheck.conformance.oracle import Rules

__all__ = ["ALIBI", "SINKS", "SLIDING_WINDOW", "SOFTCAP"]

WITH_HEADS = Capabilities(ranks=(3, 4, 5))


def _passing(**arguments: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return an adapter that passes further arguments; callables are given the query."""

    def adapt(function: Callable[..., Any]) -> Callable[..., Any]:
        def attention(query: Tensor, *args: Any, **kwargs: Any) -> Any:
            made = {n: a(query) if callable(a) else a for n, a in arguments.items()}
            return function(query, *args, **kwargs, **made)

        attention.__name__ = str(getattr(function, "__name__", "attention"))
        attention.__qualname__ = str(getattr(function, "__qualname__", "attention"))
        attention.__module__ = str(getattr(function, "__module__", ""))
        return attention

    return adapt


def _window(left: int, right: int) -> Variant:
    hidden = (
        "d = torch.arange(s.shape[-1]) - torch.arange(s.shape[-2])[:, None]",
        f"s = s.masked_fill((d < -{left}) | (d > {right}), -torch.inf)",
    )
    rules = Rules(window=(left, right), call=f"window=({left}, {right})", lines=hidden)
    return Variant(f"window-{left}-{right}", rules, _passing(window=(left, right)))


SLIDING_WINDOW = Extension(
    "sliding_window",
    "fn(query, key, value, ..., window=(left, right)): query i sees keys i - left to i + right",
    "Beltagy et al. 2020 (Longformer); window_size of flash_attn_func",
    [_window(0, 0), _window(3, 0), _window(16, 2), _window(63, 64)],
)


def _softcap(cap: float) -> Variant:
    rules = Rules(
        score=lambda s: cap * torch.tanh(s / cap),
        call=f"softcap={cap}",
        lines=(f"s = {cap} * (s / {cap}).tanh()",),
    )
    return Variant(f"softcap-{cap:g}", rules, _passing(softcap=cap))


SOFTCAP = Extension(
    "softcap",
    "fn(query, key, value, ..., softcap=c): scaled scores s become c * tanh(s / c), before masks",
    "Gemma 2 report 2024, 2.1; https://github.com/Dao-AILab/flash-attention/pull/1025",
    [_softcap(2.0), _softcap(30.0)],
)


def slopes(heads: int) -> Tensor:
    """Return the slopes of ALiBi for a number of heads: a geometric sequence."""
    return 2.0 ** (-8.0 * (torch.arange(heads) + 1) / max(heads, 1))


def _alibi_bias(scores: Tensor) -> Tensor:
    distance = torch.arange(scores.shape[-1])[None, :] - torch.arange(scores.shape[-2])[:, None]
    bias = -slopes(scores.shape[-3])[:, None, None] * distance.abs()
    return scores + bias.to(scores)


ALIBI = Extension(
    "alibi",
    "fn(query, key, value, ..., alibi_slopes=slopes): adds -slopes[head] * |i - j|",
    "Press et al. 2022, Train Short, Test Long",
    [
        Variant(
            "alibi",
            Rules(
                score=_alibi_bias,
                call="alibi_slopes=m",
                lines=(
                    "s = s - m[:, None, None] * (torch.arange(s.shape[-1]) - "
                    "torch.arange(s.shape[-2])[:, None]).abs()",
                ),
            ),
            _passing(alibi_slopes=lambda query: slopes(query.shape[-3]).to(query.device)),
        )
    ],
    capabilities=WITH_HEADS,
)


def sink_logits(heads: int) -> Tensor:
    """Return the logits of the sinks that the battery uses."""
    return torch.linspace(-1.0, 3.0, heads)


SINKS = Extension(
    "sinks",
    "fn(query, key, value, ..., sinks=logits): exp(logits[head]) joins the softmax's sum",
    "Xiao et al. 2024; gpt-oss 2025; https://github.com/ROCm/rocm-libraries/issues/12227",
    [
        Variant(
            "sinks",
            Rules(sinks=sink_logits, call="sinks=sinks"),
            _passing(sinks=lambda query: sink_logits(query.shape[-3]).to(query.device)),
        )
    ],
    capabilities=WITH_HEADS,
)
