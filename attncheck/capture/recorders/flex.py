"""`torch.nn.attention.flex_attention`, called by a module itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from attncheck.capture.call import AttentionCall, Sink
from attncheck.capture.quiet import quiet
from attncheck.capture.whereabouts import kind_of

__all__ = ["FlexWatcher", "shown_by"]


PARAMETERS: Final = ("query", "key", "value", "score_mod", "block_mask", "scale")
"""Of the operator behind ``flex_attention``, which is what a function mode sees."""

IDENTITY: Final = "_identity"
"""Name of the score function that stands for none."""


class FlexWatcher:
    """Reports ``flex_attention`` with its score function and block mask, run without compilation.

    Args:
        sink: Where to report.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """Names of the functions watched."""
        return {"flex_attention": self._attend}

    def follows(self, _: Tensor | None = None, /) -> bool:
        """Nothing but these."""
        return False

    def _attend(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        returned = function(*args, **kwargs)
        place = self._sink.here()
        if place is not None:
            module, name = place
            options = {**dict(zip(PARAMETERS, args, strict=False)), **kwargs}
            self._sink.record(
                name, "flex_attention", lambda: _as_call(module, name, options, returned)
            )
        return returned


def shown_by(mask_mod: Any, query: Tensor, key: Tensor) -> Tensor:
    """Return what a block mask shows, which it keeps as a function of positions.

    Args:
        mask_mod: ``(batch, head, query, key) -> bool``, on index tensors.
        query: ``(batch, head, query, size)``.
        key: ``(batch, key-value head, key, size)``.
    """
    from torch.nn.attention.flex_attention import create_mask

    batch, heads, n_query = query.shape[:3]
    return create_mask(mask_mod, batch, heads, n_query, key.shape[2], device=query.device)


def _as_call(
    module: nn.Module, name: str, options: Mapping[str, Any], returned: Any
) -> AttentionCall:
    query, key = options["query"], options["key"]
    n_query, n_key = query.shape[2], key.shape[2]
    plain = getattr(options["score_mod"], "__name__", "") == IDENTITY
    with quiet(query.device.type):
        mask = shown_by(_mask_mod(options["block_mask"]), query, key)
        weights = None if plain else _scored(options, mask)
    return AttentionCall(
        name=name,
        backend="flex_attention",
        kind=kind_of(module, name, n_query, n_key, causal=False),
        query=query,
        key=key,
        value=options["value"],
        output=returned[0] if isinstance(returned, tuple) else returned,
        weights=weights,
        mask=mask,
        scale=options["scale"],
    )


def _mask_mod(block_mask: Any) -> Any:
    """Return the function of positions behind a block mask, or behind its parts as a tuple."""
    return block_mask[-1] if isinstance(block_mask, tuple) else block_mask.mask_mod


def _scored(options: Mapping[str, Any], mask: Tensor) -> Tensor:
    """Weights after a score function, which takes one score and its four indices."""
    query, key = options["query"], options["key"]
    batch, heads, n_query, size = query.shape
    dtype = torch.promote_types(query.dtype, torch.float32)
    keys = key.to(dtype).repeat_interleave(heads // key.shape[1], dim=1)
    scale = 1 / math.sqrt(size) if options["scale"] is None else options["scale"]
    scores = query.to(dtype) @ keys.transpose(-1, -2) * scale
    score_mod = options["score_mod"]
    for axis in (4, 3, 2, 1):  # key, query, head, batch: one index less each time
        places = [0 if argument in (0, axis) else None for argument in range(5)]
        score_mod = torch.vmap(score_mod, in_dims=tuple(places))
    lengths = (batch, heads, n_query, key.shape[2])
    scores = score_mod(scores, *(torch.arange(n, device=query.device) for n in lengths))
    scores = scores.masked_fill(~mask, -math.inf)
    blind = (scores == -math.inf).all(-1, keepdim=True)
    return torch.softmax(scores, dim=-1).masked_fill(blind, 0)
