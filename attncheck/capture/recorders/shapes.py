"""Bring what modules compute on into ``(batch, head, query, ...)``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from attncheck.capture.call import Order
from attncheck.capture.recorders.head_count import HeadCount, declared_heads

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """Where a module keeps its heads.

    Attributes:
        in_batch: Heads in the first axis of a three-dimensional tensor, taken as batch-major.
        axis: Axis of the heads in a tensor of four or more dimensions, from the end.
        grouped: Heads lie in two axes, key-value head and head within its group.
        order: Whether batch and heads may be the other way round, see `AttentionCall`.
    """

    in_batch: int = 1
    axis: int = -3
    grouped: bool = False
    order: Order = "told"

    @classmethod
    def of(cls, module: nn.Module, tensor: Tensor, size: int) -> Layout:
        """Find the heads of ``(..., length, size)``, in a call that is running.

        The number that the module declares tells them, or how many queries there are for each
        position of the sequences that came in. Without either, a three-dimensional tensor has one
        head, and one of more dimensions has them before the length, where nearly everybody keeps
        them.

        Args:
            module: That attends.
            tensor: Its query, or its weights.
            size: Length of the last axis of its query or value.
        """
        leading, length = tuple(tensor.shape[:-2]), tensor.shape[-2]
        if len(leading) == 1:
            heads = HeadCount.of(module, leading, length, size).in_one_axis(leading[0])
            return cls(in_batch=heads, order="folded" if 1 < heads < leading[0] else "told")
        if len(leading) == 2 and leading[0] == leading[1] > 1:
            return cls(order="square")
        declared = declared_heads(module)
        if len(leading) > 1 and leading[-1] not in declared:
            first = int(len(leading) > 2)  # the batch leads, unless the heads do
            found = [
                axis for axis, count in enumerate(leading) if axis >= first and count in declared
            ]
            if not found and len(leading) > 2 and leading[-1] * leading[-2] in declared:
                return cls(grouped=True)
            if len(leading) == 2:
                counted = HeadCount.of(module, leading, length, size).counted
                found = [leading.index(counted)] if counted in leading else found
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
