"""Bring what modules compute on into ``(batch, head, query, ...)``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from torch import Tensor, nn

__all__ = ["Layout"]

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


@dataclass(frozen=True)
class Layout:
    """Where a module keeps its heads.

    Attributes:
        in_batch: Heads in the first axis of a three-dimensional tensor, batch-major.
        axis: Axis of the heads in a tensor of four or more dimensions, from the end.
        grouped: Heads lie in two axes, key-value head and head within its group.
    """

    in_batch: int = 1
    axis: int = -3
    grouped: bool = False

    @classmethod
    def of(cls, module: nn.Module, tensor: Tensor) -> Layout:
        """Find the heads of ``(..., length, size)`` by the number that the module declares.

        Without a fitting number, a three-dimensional tensor has one head, and one of more
        dimensions has them before the length, where nearly everybody keeps them.
        """
        counts = [getattr(module, name, None) for name in HEAD_COUNTS]
        declared = {count for count in counts if isinstance(count, int)}
        leading = tensor.shape[:-2]
        if len(leading) == 1:
            return cls(in_batch=next((n for n in declared if n > 1 and leading[0] % n == 0), 1))
        if len(leading) > 1 and leading[-1] not in declared:
            first = int(len(leading) > 2)  # the batch leads, unless the heads do
            found = [
                axis for axis, size in enumerate(leading) if axis >= first and size in declared
            ]
            if not found and len(leading) > 2 and leading[-1] * leading[-2] in declared:
                return cls(grouped=True)
            if len(found) == 1:
                return cls(axis=found[0] - tensor.ndim)
        return cls()

    @property
    def plain(self) -> bool:
        """Whether tensors of four dimensions stay as they are."""
        return self.axis == -3

    def apply(self, tensor: Tensor) -> Tensor:
        """Turn ``(..., length, size)`` into ``(batch, head, length, size)``."""
        if tensor.ndim == 2:
            return tensor[None, None]
        if tensor.ndim == 3:
            return tensor.reshape(-1, self.in_batch, *tensor.shape[1:])
        tensor = tensor.flatten(-4, -3) if self.grouped else tensor.movedim(self.axis, -3)
        return tensor if tensor.ndim == 4 else tensor.flatten(0, -4)
