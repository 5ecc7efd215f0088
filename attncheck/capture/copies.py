"""Copies of tensors that a model may overwrite."""

from __future__ import annotations

from typing import Final

from torch import Tensor

__all__ = ["compact_copy", "version_of", "worth_copying"]

MOST: Final = 1 << 22
"""Numbers up to which weights are copied; larger ones are watched."""


def worth_copying(weights: Tensor) -> bool:
    """Whether weights are copied: they are small, or nothing tells when they are overwritten."""
    return weights.numel() <= MOST or weights.is_inference()


def version_of(tensor: Tensor) -> int:
    """How often a tensor was overwritten; where that is not counted, never."""
    return -1 if tensor.is_inference() else tensor._version


def compact_copy(tensor: Tensor) -> Tensor:
    """Copy the numbers of a tensor, each once: an expanded one stays expanded.

    Args:
        tensor: Of any shape.

    Example:
        >>> import torch
        >>> compact_copy(torch.ones(1, 3).expand(5, 3)).stride()
        (0, 1)
    """
    once = tuple(
        slice(0, 1) if stride == 0 else slice(None)
        for stride in (tensor.stride() if tensor.numel() else ())
    )
    return tensor.detach()[once].clone().expand(tensor.shape)
