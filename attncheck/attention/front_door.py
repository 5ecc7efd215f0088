"""`as_attention`: everything that people hold their attention in, turned into `AttentionMaps`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from attncheck.attention.adapters import BERTVIZ_FIELDS, from_lens_cache, unwrapped
from attncheck.attention.light import on_one_thread_if_light
from attncheck.attention.look import Look, look_over
from attncheck.attention.maps import AttentionMaps, LayerAttention
from attncheck.attention.masks import as_visible
from attncheck.attention.tokens import as_tokens
from attncheck.attention.validate import require_cells, require_floating, require_weights

__all__ = ["AttentionLike", "as_attention"]

AttentionLike: TypeAlias = Any
"""A tensor or array ``(..., query, key)``, a list or tuple of them, a Hugging Face output with
``attentions``, a TransformerLens cache with ``hook_pattern`` entries, the arguments of a BertViz
view as a dictionary, a `LayerAttention`, or `AttentionMaps`."""

OUTPUT_FIELDS: Final = {
    "attentions": "self",
    "encoder_attentions": "self",
    "decoder_attentions": "self",
    "cross_attentions": "cross",
}
"""Where Hugging Face outputs keep their weights, and of which kind those are."""

FUTURE_ROWS: Final = 64
"""Queries whose later keys are looked at together on a CPU."""

ACCEPTED: Final = (
    "a tensor or array (query, key), (head, query, key), (batch, head, query, key) or "
    "(layer, batch, head, query, key), a list of those, one per layer, a Hugging Face output "
    "with attentions, a TransformerLens cache, or AttentionMaps"
)


@on_one_thread_if_light
def as_attention(
    attention: AttentionLike,
    *,
    tokens: Any = None,
    mask: Any = None,
    causal: bool | None = None,
    name: str = "attention",
    require: Literal["weights", "shape"] = "weights",
) -> AttentionMaps:
    """Turn attention in any of its usual forms into `AttentionMaps`.

    Tensors are detached, never copied or moved. A 2-D tensor is ``(query, key)``, a 3-D one
    ``(head, query, key)``, a 4-D one ``(batch, head, query, key)``, a 5-D one a stack of layers.

    Args:
        attention: What holds the weights.
        tokens: Strings or ids, one per key; one such list per batch element for a batch.
        mask: Which keys are visible, see `as_visible`; applies to every layer. Default: what the
            maps carry, else none.
        causal: Whether queries see no later key. Default: what the maps carry; for bare tensors,
            causal if every weight on a later key is exactly 0 in all heads of the layer.
        name: What messages call the attention.
        require: ``"weights"`` rejects what is not attention (NaN, negative, rows that do not sum
            to 1); ``"shape"`` leaves values to the caller, as assertions do.

    Raises:
        TypeError: ``attention`` is of no accepted kind.
        ValueError: Wrong rank, ragged, empty, or not attention weights.

    Example:
        >>> maps = as_attention(torch.full((2, 4, 4), 0.25), tokens=["the", "cat", "sat", "."])
        >>> maps[0].shape
        torch.Size([1, 2, 4, 4])
        >>> as_attention(torch.randn(4, 4).sub(9))
        Traceback (most recent call last):
        ValueError: attention: has negative values, ... apply softmax(dim=-1) first
    """
    if not isinstance(causal, bool | None):
        raise TypeError(f"causal: got {type(causal).__name__}; expected True, False or None")
    if isinstance(attention, AttentionMaps):
        layers = list(attention.layers)
        tokens = attention.tokens if tokens is None else tokens
        bare = False
    else:
        layers = list(_layers_of(attention, name))
        bare = not isinstance(attention, LayerAttention)
    if not layers:
        raise ValueError(f"{name}: empty, holds no layer; expected {ACCEPTED}")
    labels = [name if len(layers) == 1 else f"{name}[{layer.name}]" for layer in layers]
    for layer, label in zip(layers, labels, strict=True):
        require_cells(layer.shape, label)
    looks = [look_over(layer) if require == "weights" else None for layer in layers]
    layers = [
        _with_context(layer, mask, causal, bare=bare, look=look)
        for layer, look in zip(layers, looks, strict=True)
    ]
    if require == "weights":
        for layer, look, label in zip(layers, looks, labels, strict=True):
            if look is None or not look.sound:
                require_weights(layer, label)
    return AttentionMaps(layers, tokens=as_tokens(tokens, layers))


def _layers_of(attention: Any, name: str) -> Iterator[LayerAttention]:
    """Yield the layers of anything that is not `AttentionMaps` already."""
    if isinstance(attention, LayerAttention):
        yield attention
        return
    found = from_lens_cache(attention) or _from_output(attention, name)
    if found is not None:
        yield from found
        return
    if isinstance(attention, Tensor | np.ndarray) or not isinstance(attention, Sequence):
        tensor = _tensor(attention, name)
        stack = list(tensor) if tensor.ndim == 5 else [tensor]
    else:
        if _is_nested_numbers(attention):
            stack = [_tensor(attention, name)]
        else:
            stack = [_tensor(item, f"{name}[{i}]") for i, item in enumerate(attention)]
    labels = [name if len(stack) == 1 else f"{name}[{index}]" for index in range(len(stack))]
    held = [_four_dimensional(tensor, label) for tensor, label in zip(stack, labels, strict=True)]
    _require_one_shape(held, name)
    for index, weights in enumerate(held):
        yield LayerAttention(weights, name=f"layer {index}", index=index)


def _require_one_shape(layers: list[Tensor], name: str) -> None:
    """Reject bare layers of different shapes: most likely two models or two inputs mixed up."""
    shapes = [tuple(layer.shape) for layer in layers]
    if len({(batch, query, key) for batch, _, query, key in shapes}) > 1:
        raise ValueError(
            f"{name}: ragged layers, (batch, head, query, key) = "
            f"{', '.join(map(str, shapes[:4]))}; one model and one input give layers of one shape. "
            "Where shapes really differ, pass AttentionMaps of LayerAttention"
        )


def _from_output(output: Any, name: str) -> list[LayerAttention] | None:
    """Read a Hugging Face output (or a dict like one); None if this is no such thing."""
    is_output = isinstance(output, Mapping) or any(hasattr(output, key) for key in OUTPUT_FIELDS)
    if not is_output or isinstance(output, Tensor):
        return None
    layers: list[LayerAttention] = []
    known = {**OUTPUT_FIELDS, **BERTVIZ_FIELDS} if isinstance(output, Mapping) else OUTPUT_FIELDS
    for field, kind in known.items():
        held = output.get(field) if isinstance(output, Mapping) else getattr(output, field, None)
        for number, tensor in enumerate(held or ()):
            if tensor is None:
                raise ValueError(
                    f"{name}: {field}[{number}] is None: the model ran a backend that returns no "
                    "weights. Capture them in that backend with attncheck.AttentionExtractor(model)"
                )
            weights = _four_dimensional(_tensor(tensor, name), f"{name}.{field}[{number}]")
            label = f"{re.sub('_?attentions?$', '', field)} layer {number}".strip()
            layers.append(
                LayerAttention(weights, name=label, index=len(layers), kind=kind)  # type: ignore[arg-type]
            )
    if not layers:
        raise ValueError(
            f"{name}: this {type(output).__name__} holds no attention weights (sdpa and flash "
            "backends return none). Capture them in the backend the model runs: "
            "attncheck.AttentionExtractor(model).get_attention(**inputs)"
        )
    return layers


def _is_nested_numbers(sequence: Sequence[Any]) -> bool:
    """Whether this is one matrix written as nested lists, not a list of tensors."""
    first: Any = sequence
    while isinstance(first, list | tuple) and first:
        first = first[0]
    return isinstance(first, int | float)


def _tensor(value: Any, name: str) -> Tensor:
    value = unwrapped(value)
    if isinstance(value, Tensor):
        tensor = value.detach()
    elif value is None:
        raise TypeError(
            f"{name}: is None: the model's backend returns no weights. Capture them with "
            "attncheck.AttentionExtractor(model)"
        )
    elif isinstance(value, nn.Module):
        raise TypeError(
            f"{name}: is a model, {type(value).__name__}; expected its attention: "
            "attncheck.AttentionExtractor(model).get_attention(inputs)"
        )
    else:
        try:
            tensor = torch.as_tensor(np.asarray(value))
        except (TypeError, ValueError):
            raise TypeError(
                f"{name}: cannot read attention from {type(value).__name__}; expected {ACCEPTED}"
            ) from None
    return require_floating(tensor, name)


def _four_dimensional(tensor: Tensor, name: str) -> Tensor:
    if not 2 <= tensor.ndim <= 4:
        raise ValueError(
            f"{name}: has {tensor.ndim} dimension{'s' * (tensor.ndim != 1)}, shape "
            f"{tuple(tensor.shape)}; expected {ACCEPTED}"
        )
    require_cells(tuple(tensor.shape), name)
    return tensor[(None,) * (4 - tensor.ndim)]


def _with_context(
    layer: LayerAttention, mask: Any, causal: bool | None, *, bare: bool, look: Look | None
) -> LayerAttention:
    """Add the caller's mask and causality to a layer; find causality where nobody said."""
    if mask is not None:
        seen = as_visible(mask, layer.shape).to(layer.device)
        layer = layer.changed(mask=seen, sighted=None)
    if causal is not None:
        return layer.changed(causal=causal)
    return replace(layer, causal=_looks_causal(layer, look)) if bare else layer


def _looks_causal(layer: LayerAttention, look: Look | None) -> bool:
    if layer.kind == "cross" or layer.n_query > layer.n_key:
        return False
    first = 1 + layer.n_key - layer.n_query
    if layer.weights.diagonal(first, -2, -1).any():
        return False
    if layer.mask is not None and layer.n_query < layer.n_key:
        # Few queries over padded keys, as in pooling: they are not the last positions.
        last = layer.mask.any(-2)[..., -layer.n_query :]
        if not last.all():
            return False
    if look is not None:
        return not look.ahead
    return not any(_holds_anything(part) for part in _future(layer.weights, first))


def _future(weights: Tensor, first: int) -> Iterator[Tensor]:
    """Yield what stands on the diagonal ``first`` and above it, some rows at a time."""
    n_query, n_key = weights.shape[-2:]
    step = FUTURE_ROWS if weights.device.type == "cpu" else n_query
    for begin in range(0, n_query, step):
        rows = weights[..., begin : begin + step, :]
        edge = first + begin
        yield rows[..., edge : edge + step].triu()
        if edge + step < n_key:
            yield rows[..., edge + step :]


def _holds_anything(part: Tensor) -> bool:
    # Extremes cost a tenth of comparing every weight with 0; NaN comes through them.
    return bool(part.numel()) and bool((part.amax() != 0) | (part.amin() != 0))
