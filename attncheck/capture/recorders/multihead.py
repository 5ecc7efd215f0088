"""`nn.MultiheadAttention`, and with it `nn.TransformerEncoder`, ``Decoder`` and their layers.

The function behind them is called a second time for its weights, per head and without dropout;
the output of that second call must be the output of the first. Under a function mode the modules
themselves choose this function over their fused inference path.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from attncheck.attention.masks import HIDDEN_BELOW
from attncheck.capture.call import AttentionCall, Sink
from attncheck.capture.quiet import quiet

__all__ = ["MultiheadWatcher"]

FUSED = ("_native_multi_head_attention", "_transformer_encoder_layer_fwd")
"""Fused kernels, called by name only by code that bypasses the modules."""


class MultiheadWatcher:
    """Reports ``torch.nn.functional.multi_head_attention_forward``.

    Args:
        sink: Where to report.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """Names of the functions watched."""
        return {
            "multi_head_attention_forward": self._attend,
            **dict.fromkeys(FUSED, self._fused),
        }

    def follows(self, _: Tensor | None = None, /) -> bool:
        """Nothing but these."""
        return False

    def _attend(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        returned = function(*args, **kwargs)
        place = self._sink.here()
        if place is not None:
            name = place[1]
            self._sink.record(
                name,
                "multi_head_attention",
                lambda: _as_call(name, function, args, kwargs, returned),
            )
        return returned

    def _fused(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        place = self._sink.here()
        if place is not None:
            self._sink.unreadable(
                place[1],
                f"the fused kernel torch.{function.__name__}, which shows no weights",
                "Call nn.MultiheadAttention instead of the kernel",
            )
        return function(*args, **kwargs)


def _as_call(
    name: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    returned: tuple[Tensor, Tensor | None],
) -> AttentionCall:
    given = inspect.signature(function).bind(*args, **kwargs)
    given.apply_defaults()
    options = given.arguments
    output = returned[0]
    hint_is_used = options["key_padding_mask"] is None and not options["need_weights"]
    causal = bool(options["is_causal"] and hint_is_used)
    again: dict[str, Any] = {"need_weights": True, "average_attn_weights": False}
    again["is_causal"] = False
    if causal:
        again["attn_mask"] = _future(options["query"].shape[0], options["key"].shape[0], output)
    undropped = {"training": False, "dropout_p": 0.0}
    with quiet(output.device.type):
        redone, weights = function(**{**options, **again, **undropped})
    if weights.ndim == 3:
        weights = weights[None]
    mask = None if causal else _visible(options, weights)
    redone, weights = _without_blind_rows(redone, output, weights, mask)
    dropout = float(options["dropout_p"]) if options["training"] else 0.0
    return AttentionCall(
        name=name,
        backend="multi_head_attention",
        kind="self" if options["query"] is options["key"] else _kind(options),
        output=output,
        weights=weights,
        mask=mask,
        causal=causal,
        dropout=dropout,
        without_dropout=lambda: function(**{**options, **undropped})[0],
        redone=redone,
    )


def _kind(options: Mapping[str, Any]) -> Any:
    """Modules that transpose for ``batch_first`` hand over equal views of one tensor."""
    query, key = options["query"], options["key"]
    same = query.shape == key.shape and query.data_ptr() == key.data_ptr()
    return "self" if same else "cross"


def _future(n_query: int, n_key: int, like: Tensor) -> Tensor:
    return torch.ones(n_query, n_key, dtype=torch.bool, device=like.device).triu_(1)


def _visible(options: Mapping[str, Any], weights: Tensor) -> Tensor | None:
    """Merge attention mask and padding; keys that the module added itself are visible."""
    batch, heads, n_query, n_key = weights.shape
    seen: Tensor | None = None
    mask, padding = options["attn_mask"], options["key_padding_mask"]
    if mask is not None:
        shown = _shown(mask)
        seen = shown[None, None] if mask.ndim == 2 else shown.view(batch, heads, n_query, -1)
    if padding is not None:
        shown = _shown(padding).view(batch, 1, 1, -1)
        seen = shown if seen is None else seen & shown
    if seen is not None and seen.shape[-1] < n_key:
        seen = torch.nn.functional.pad(seen, (0, n_key - seen.shape[-1]), value=True)
    return seen


def _shown(mask: Tensor) -> Tensor:
    return ~mask if mask.dtype == torch.bool else mask > HIDDEN_BELOW


def _without_blind_rows(
    redone: Tensor, output: Tensor, weights: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Make rows that see no key zero, if they were: the weights-returning path has NaN in them."""
    if mask is None:
        return redone, weights
    blind = ~mask.any(-1).expand(weights.shape[:3])
    if not bool(blind.any()):
        return redone, weights
    was_nan = output.isnan().any(-1).view(-1, weights.shape[0]).transpose(0, 1)
    blind = blind & ~was_nan[:, None]
    rows = blind.any(1).transpose(0, 1)
    rows = rows[..., None] if output.ndim == 3 else rows
    return torch.where(rows, output, redone), weights.masked_fill(blind[..., None], 0)
