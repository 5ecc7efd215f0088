"""Attention as other tools hold it: TransformerLens caches, nnsight proxies, BertViz tuples."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

from torch import Tensor

from attncheck.attention.arguments import whole_number
from attncheck.attention.maps import LayerAttention

__all__ = ["BERTVIZ_FIELDS", "from_lens_cache", "to_bertviz", "unwrapped"]

PATTERN_HOOK: Final = re.compile(
    r"^(?P<stack>\w+)\.(?P<layer>\d+)\.(?P<part>\w*attn\w*)\.hook_pattern$"
)
"""``blocks.0.attn.hook_pattern``; with an encoder and a decoder ``decoder.0.cross_attn...``."""

BERTVIZ_FIELDS: Final = {
    "attention": "self",
    "encoder_attention": "self",
    "decoder_attention": "self",
    "cross_attention": "cross",
}
"""Arguments of BertViz's views that carry attention, and of which kind it is."""


def from_lens_cache(cache: Any) -> list[LayerAttention] | None:
    """Read the patterns of a TransformerLens activation cache, in the order of the layers.

    Args:
        cache: Anything with ``keys()`` and items, from hook name to tensor: what
            ``run_with_cache`` returns, or a dictionary filled by hooks. Patterns are
            ``(batch, head, query, key)``, or ``(head, query, key)`` without the batch.

    Returns:
        One layer for each ``hook_pattern``; None if there is none, so that the cache is no such
        thing.

    Example:
        >>> import torch
        >>> cache = {"blocks.0.attn.hook_pattern": torch.eye(3).expand(1, 2, 3, 3)}
        >>> [layer.name for layer in from_lens_cache(cache)]
        ['blocks.0.attn']
    """
    if not hasattr(cache, "keys") or not hasattr(cache, "__getitem__"):
        return None
    found = []
    for key in list(cache.keys()):
        match = PATTERN_HOOK.match(key) if isinstance(key, str) else None
        if match is not None:
            # The encoder runs before the decoder; within a layer, self- before cross-attention.
            cross = "cross" in match["part"]
            place = ("decoder" in match["stack"], int(match["layer"]), cross)
            found.append((place, key.removesuffix(".hook_pattern"), cross, cache[key]))
    if not found:
        return None
    found.sort(key=lambda entry: entry[0])
    layers = []
    for index, (_, name, cross, held) in enumerate(found):
        weights = unwrapped(held).detach()
        if weights.ndim == 3:
            weights = weights[None]
        kind: Literal["self", "cross"] = "cross" if cross else "self"
        layers.append(
            LayerAttention(weights, name=name, index=index, kind=kind, backend="TransformerLens")
        )
    return layers


def unwrapped(held: Any) -> Any:
    """Return the tensor behind a saved nnsight proxy; anything else as it is.

    Args:
        held: A tensor, or an object that keeps one in ``value``.
    """
    value = None if isinstance(held, Tensor) else getattr(held, "value", None)
    return value if isinstance(value, Tensor) else held


def to_bertviz(
    layers: Sequence[LayerAttention], *, kind: str | None = None, element: int = 0
) -> tuple[Tensor, ...]:
    """Turn layers into what BertViz's ``head_view`` and ``model_view`` take as ``attention``.

    Args:
        layers: Captured layers.
        kind: ``"self"`` or ``"cross"``: only layers of this kind.
        element: Which sequence of the batch; BertViz shows one.

    Returns:
        One float32 tensor ``(1, head, query, key)`` on the CPU per layer.

    Raises:
        TypeError: ``element`` is no number.
        ValueError: No such sequence, no layer of that kind, or layers of different lengths.
    """
    element = whole_number(element, "element", "the number of a sequence")
    chosen = [layer for layer in layers if kind in (None, layer.kind)]
    if not chosen:
        kinds = sorted({layer.kind for layer in layers})
        raise ValueError(f"kind: no layer is of kind {kind!r}; these are {', '.join(kinds)}")
    _require_one_size(chosen)
    for layer in chosen:
        if not -layer.batch <= element < layer.batch:
            raise ValueError(f"element: no sequence {element} in a batch of {layer.batch}")
    return tuple(layer.weights[element][None].detach().cpu().float() for layer in chosen)


def _require_one_size(layers: Iterable[LayerAttention]) -> None:
    sizes = {(layer.n_query, layer.n_key) for layer in layers}
    if len(sizes) > 1:
        shown = ", ".join(f"{query} x {key}" for query, key in sorted(sizes))
        raise ValueError(
            f"layers of different lengths ({shown}) do not fit one BertViz view; choose with "
            'kind="self" or kind="cross", or slice the maps'
        )
