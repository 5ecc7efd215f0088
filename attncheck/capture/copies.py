"""Copies of tensors that a model may overwrite."""

from __future__ import annotations

from torch import Tensor

__all__ = ["compact_copy"]


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
