"""Copies of tensors that a model may overwrite."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor

from attncheck.capture.plain import numbers_of

__all__ = ["Watched", "compact_copy", "version_of", "worth_copying"]

MOST: Final = 1 << 22
"""Numbers up to which weights are copied; larger ones are watched."""


def worth_copying(weights: Tensor) -> bool:
    """Whether weights are copied: they are small, or nothing tells when they are overwritten."""
    return weights.numel() <= MOST or weights.is_inference()


def version_of(tensor: Tensor) -> int:
    """How often a tensor was overwritten; where that is not counted, never."""
    return -1 if tensor.is_inference() else tensor._version


class Watched:
    """Tensors that a function may overwrite.

    Args:
        tensors: Before it is called; copied where nothing counts how often they are overwritten.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._held: list[tuple[Tensor, Tensor | int]] = [
            (t, t.clone() if t.is_inference() else t._version) for t in tensors
        ]

    def overwritten(self) -> tuple[Tensor, ...]:
        """Return those that hold something else now.

        Raises:
            UnreadableError: One was copied and holds no numbers.
        """
        return tuple(tensor for tensor, before in self._held if not _is_same(tensor, before))


def _is_same(tensor: Tensor, before: Tensor | int) -> bool:
    if isinstance(before, int):
        return tensor._version == before
    return torch.allclose(numbers_of(tensor), numbers_of(before), rtol=0, atol=0, equal_nan=True)


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
