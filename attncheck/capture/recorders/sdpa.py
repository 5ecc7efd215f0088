"""`torch.nn.functional.scaled_dot_product_attention`, called by a module itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from attncheck.capture.call import AttentionCall, Kind, Sink
from attncheck.capture.copies import compact_copy
from attncheck.capture.follow.orders import Orders
from attncheck.capture.recorders.shapes import Layout
from attncheck.capture.whereabouts import kind_of

__all__ = ["SdpaWatcher"]

PARAMETERS: Final = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")


KERNELS: Final = (
    *("_scaled_dot_product_attention_math", "_scaled_dot_product_flash_attention"),
    *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_efficient_attention"),
    *("_scaled_dot_product_cudnn_attention", "_scaled_dot_product_fused_attention_overrideable"),
    *("_flash_attention_forward", "_efficient_attention_forward"),
)
"""Kernels below it, each with arguments of its own."""


class SdpaWatcher:
    """Reports ``scaled_dot_product_attention`` with all its options.

    Args:
        sink: Where to report.
        orders: Follows outputs whose heads are not told yet.
    """

    def __init__(self, sink: Sink, orders: Orders) -> None:
        self._sink, self._orders = sink, orders

    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """Names of the functions watched."""
        return {
            "scaled_dot_product_attention": self._attend,
            **dict.fromkeys(KERNELS, self._refuse),
        }

    def follows(self, _: Tensor | None = None, /) -> bool:
        """Nothing but these."""
        return False

    def _refuse(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        output = function(*args, **kwargs)
        place = self._sink.here()
        if place is not None:
            name = str(getattr(function, "__name__", "")).partition(".")[0]
            self._sink.unreadable(
                place[1],
                f"calls the kernel {name}",
                "Call torch.nn.functional.scaled_dot_product_attention, which chooses it",
            )
        return output

    def _attend(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        output = function(*args, **kwargs)
        place = self._sink.here()
        if place is None:
            return output
        module, name = place
        options = {**kwargs, **dict(zip(PARAMETERS, args, strict=False))}
        if options["query"].is_nested:
            self._sink.unreadable(
                name,
                "scaled_dot_product_attention on nested tensors",
                "Pass padded tensors and a mask",
            )
            return output
        build = partial(_as_call, module, name, function, options, output)
        self._orders.begin(output, self._sink.record(name, "sdpa", build))
        return output


def _copied(options: Mapping[str, Any]) -> dict[str, Any]:
    """Copy query, key and value, which a model may overwrite while their call waits."""
    held = {name: options.get(name) for name in ("query", "key", "value", "attn_mask")}
    copies = {name: compact_copy(t) for name, t in held.items() if isinstance(t, Tensor)}
    return {**options, **copies}


def _as_call(
    module: nn.Module,
    name: str,
    function: Callable[..., Any],
    options: dict[str, Any],
    output: Tensor,
    layout: Layout | None = None,
    kind: Kind | None = None,
) -> AttentionCall:
    if layout is None:
        layout = Layout.of(module, options["query"].shape[:-1], options["query"].shape[-1])
    if not layout.told:
        options, output = _copied(options), output.detach().clone()
    query, key, value = options["query"], options["key"], options["value"]
    n_query, n_key = query.shape[-2], key.shape[-2]
    causal = bool(options.get("is_causal", False))
    kind = kind or kind_of(module, name, n_query, n_key, causal=causal)
    mask = options.get("attn_mask")
    if causal and layout.mixes:  # it hides keys behind a query by its number in that axis
        mask = torch.ones(n_query, n_key, dtype=torch.bool, device=query.device).tril()
        causal = False
    if mask is not None and hasattr(
        mask, "_materialize"
    ):  # torch.nn.attention.bias: a causal mask in name only
        mask = mask._materialize(query.device)
    return AttentionCall(
        name=name,
        backend="sdpa",
        kind=kind,
        query=layout.apply(query),
        key=layout.apply_to_keys(key),
        value=layout.apply_to_keys(value),
        output=layout.apply(output),
        mask=None if mask is None else _mask(mask, query, n_key, layout),
        causal=causal,
        scale=options.get("scale"),
        dropout=float(options.get("dropout_p", 0.0)),
        without_dropout=lambda: layout.apply(function(**{**options, "dropout_p": 0.0})),
        layout=None if layout.told else layout,
        again=lambda told: _as_call(module, name, function, options, output, told, kind),
    )


def _mask(mask: Tensor, query: Tensor, n_key: int, layout: Layout) -> Tensor:
    """Give a mask, which broadcasts from the right, the same four dimensions."""
    if query.ndim == 4 and layout.plain:
        return mask[(None,) * (4 - mask.ndim)]
    if mask.numel() == query.shape[-2] * n_key and not layout.mixes:
        return mask.reshape(1, 1, query.shape[-2], n_key)
    full = mask.broadcast_to(*query.shape[:-1], n_key)
    return layout.apply(full)
