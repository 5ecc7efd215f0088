"""Bring what modules compute on into ``(batch, head, query, ...)``."""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn

__all__ = ["four_dimensional", "heads_in_batch"]

HEAD_COUNTS: Final = (
    "num_heads",
    "n_heads",
    "num_attention_heads",
    "n_head",
    "nhead",
    "heads",
    "num_head",
)
"""Attributes in which modules keep their number of heads."""


def heads_in_batch(module: nn.Module, tensor: Tensor) -> int:
    """Return how many heads a three-dimensional tensor carries in its batch axis."""
    if tensor.ndim != 3:
        return 1
    for attribute in HEAD_COUNTS:
        heads = getattr(module, attribute, None)
        if isinstance(heads, int) and heads > 1 and tensor.shape[0] % heads == 0:
            return heads
    return 1


def four_dimensional(tensor: Tensor, heads: int = 1) -> Tensor:
    """Turn ``(..., length, size)`` into ``(batch, head, length, size)``.

    Args:
        tensor: Two- to many-dimensional; leading axes beyond the heads become batch.
        heads: Heads in the first axis of a three-dimensional tensor, batch-major.
    """
    if tensor.ndim == 2:
        return tensor[None, None]
    if tensor.ndim == 3:
        return tensor.unflatten(0, (-1, heads))
    return tensor if tensor.ndim == 4 else tensor.flatten(0, -4)
