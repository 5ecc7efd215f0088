"""`Subject`: the attention that a check judges, opened once for all checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from torch import Tensor

from attncheck.attention import AttentionLike, LayerAttention, as_attention, head_name
from attncheck.attention.maps import Tokens
from attncheck.attention.validate import require_weights
from attncheck.checks.finding import Evidence, Position
from attncheck.checks.select import HeadSelection, select_heads
from attncheck.checks.text import clip_start, safe
from attncheck.tolerances import Tolerance, tolerance_for

__all__ = ["Subject", "head_label", "open_subject"]

AXES: Final = ("batch", "head", "query", "key")
SHORT: Final = {"float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16"}
WINDOW: Final = 512
"""Evidence holds at most this many rows and columns: 1 MiB in float32."""


@dataclass(frozen=True)
class Subject:
    """What a check judges.

    Attributes:
        layers: The layers, narrowed to the chosen heads.
        tokens: Tokens of each batch element, or None.
        name: What the caller calls the attention.
        description: dtype, shape and axes of what came, before any choice of heads.
    """

    layers: tuple[LayerAttention, ...]
    tokens: Tokens | None
    name: str
    description: str

    @property
    def tolerance(self) -> Tolerance:
        """The loosest tolerance among the dtypes of the layers."""
        return tolerance_for(*(layer.weights.dtype for layer in self.layers))

    @property
    def n_heads(self) -> int:
        """Heads to be judged, over all layers."""
        return sum(layer.n_heads for layer in self.layers)

    def position(
        self, layer: LayerAttention, batch: int, query: int | None = None, key: int | None = None
    ) -> Position:
        """Describe a place, with tokens where they are known and belong to this layer."""
        tokens = self.tokens[batch] if self.tokens and layer.kind != "cross" else None
        at_query = None if query is None else int(layer.query_positions()[query])
        return Position(
            batch=batch if layer.batch > 1 else None,
            query=query,
            key=key,
            query_token=_at(tokens, at_query),
            key_token=_at(tokens, key),
        )

    def evidence(
        self,
        layer: LayerAttention,
        head: int,
        batch: int,
        offending: Tensor | None = None,
        around: tuple[int, int] = (0, 0),
        visible: Tensor | None = None,
    ) -> Evidence:
        """Copy one head to the CPU: of a long sequence, the window around a cell.

        Args:
            layer: The layer.
            head: Position on its head axis.
            batch: Position on its batch axis.
            offending: Bool, broadcastable to the weights: cells that break the rule.
            around: Query and key that must be in the window.
            visible: Bool, broadcastable to the weights. Default: what the layer says.
        """
        rows, columns = _window(layer.n_query, around[0]), _window(layer.n_key, around[1])
        weights = layer.weights[batch, head, rows, columns].detach()
        wide = weights.double() if SHORT[_dtype(layer)] == "f64" else weights.float()
        tokens = self.tokens[batch] if self.tokens and layer.kind != "cross" else None

        def one(cells: Tensor | None) -> np.ndarray[Any, np.dtype[np.bool_]]:
            if cells is None:
                return np.zeros(wide.shape, dtype=bool)
            full = cells.expand(layer.weights.shape)[batch, head, rows, columns]
            return np.array(full.cpu().numpy())

        return Evidence(
            head=head_label(layer, head),
            weights=np.array(wide.cpu().numpy()),
            offending=one(offending),
            visible=one(layer.visible() if visible is None else visible),
            batch=batch,
            query_start=rows.start,
            key_start=columns.start,
            tokens=None if tokens is None else tokens[columns],
        )


def open_subject(
    attn: AttentionLike,
    *,
    tokens: Any = None,
    mask: Any = None,
    causal: bool | None = None,
    heads: HeadSelection = None,
    name: str = "attn",
    weights_only: bool = False,
) -> Subject:
    """Open anything that holds attention, keep the chosen heads, and describe what came.

    Args:
        attn: Attention weights in any form that `as_attention` takes.
        tokens: Strings or ids, one per key, shown at the worst position.
        mask: Which keys are visible, see `as_visible`.
        causal: Whether queries see no later key.
        heads: Which heads to judge, see `select_heads`.
        name: What messages call the attention.
        weights_only: Reject values that are not attention weights (for measures of weights, which
            mean nothing on anything else).

    Raises:
        ValueError: What came is no attention, or ``heads`` selects nothing.
        TypeError: ``attn``, ``heads`` or ``name`` is of no accepted kind.
    """
    if not isinstance(name, str):
        raise TypeError(f"name: got {type(name).__name__}; expected a string")
    maps = as_attention(attn, tokens=tokens, mask=mask, causal=causal, name=name, require="shape")
    layers = tuple(select_heads(maps.layers, heads))
    if weights_only:
        for layer in layers:
            require_weights(layer, name if len(layers) == 1 else f"{name}[{layer.name}]")
    ndim = getattr(attn, "ndim", None)
    return Subject(layers, maps.tokens, name, _describe(maps.layers, ndim))


def head_label(layer: LayerAttention, head: int) -> str:
    """Name a head by its position on the head axis; later calls of one module say which."""
    label = head_name(layer.index, layer.heads[head])
    return f"{label} call {layer.call}" if layer.call else label


def _describe(layers: tuple[LayerAttention, ...], ndim: int | None) -> str:
    """Say dtype, shape and axes, e.g. ``"12 layers of f32[1,12,9,9] (batch, ...)"``."""
    kept = ndim if ndim in (2, 3) else 4
    shapes = [
        f"{SHORT[_dtype(layer)]}[{','.join(str(size) for size in layer.weights.shape[4 - kept :])}]"
        for layer in layers
    ]
    axes = f"({', '.join(AXES[4 - kept :])})"
    if len(layers) == 1:
        named = layers[0].name
        where = "" if named == f"layer {layers[0].index}" else f", {clip_start(safe(named), 24)}"
        return f"{shapes[0]} {axes}{where}"
    distinct = list(dict.fromkeys(shapes))
    shown = distinct[0] if len(distinct) == 1 else f"{distinct[0]} to {distinct[-1]}"
    return f"{len(layers)} layers of {shown} {axes}"


def _dtype(layer: LayerAttention) -> str:
    return str(layer.weights.dtype).removeprefix("torch.")


def _window(length: int, around: int) -> slice:
    start = min(max(0, around - WINDOW // 2), max(0, length - WINDOW))
    return slice(start, min(length, start + WINDOW))


def _at(tokens: tuple[str | int, ...] | None, place: int | None) -> str | int | None:
    if tokens is None or place is None or not 0 <= place < len(tokens):
        return None
    return tokens[place]
