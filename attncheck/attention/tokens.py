"""Tokens beside the weights: strings or ids, one list per batch element."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from attncheck.attention.maps import LayerAttention, Tokens

__all__ = ["as_tokens"]


def as_tokens(tokens: Any, layers: Sequence[LayerAttention]) -> Tokens | None:
    """Turn tokens into one tuple per batch element, checked against the self-attention layers.

    Args:
        tokens: Strings or ids ``(key,)``, or ``(batch, key)``; a tensor or array of ids; or None.
            One list serves every element of a batch.
        layers: The layers they belong to. Cross-attention layers are not checked: their keys are
            another sequence.

    Raises:
        TypeError: They are no list.
        ValueError: Their number is not that of the keys, or of the batch.

    Example:
        >>> import torch
        >>> as_tokens(["a", "b"], [LayerAttention(torch.eye(2)[None, None])])
        (('a', 'b'),)
    """
    if tokens is None:
        return None
    if isinstance(tokens, str):
        raise ValueError(f"tokens: got one string {tokens[:20]!r}; expected a list of tokens")
    held = tokens.tolist() if isinstance(tokens, Tensor) or hasattr(tokens, "tolist") else tokens
    if not isinstance(held, Iterable):
        raise TypeError(f"tokens: got {type(tokens).__name__}; expected a list of tokens")
    held = list(held)
    batched = bool(held) and isinstance(held[0], list | tuple)
    rows = tuple(tuple(row) for row in held) if batched else (tuple(held),)
    own = [layer for layer in layers if layer.kind != "cross"]
    for layer in own:
        if len(rows) not in (1, layer.batch):
            raise ValueError(f"tokens: {len(rows)} sequences for a batch of {layer.batch}")
        for row in rows:
            if len(row) != layer.n_key:
                raise ValueError(
                    f"tokens: {len(row)} tokens for {layer.n_key} keys of {layer.name}; pass one "
                    "token per key, special tokens included"
                )
    batch = own[0].batch if own else len(rows)
    return rows * batch if len(rows) == 1 else rows
