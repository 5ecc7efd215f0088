"""How compiled loops get at the weights that a layer holds: some heads at a time, on threads."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, TypeVar

import torch

from attncheck.attention.maps import LayerAttention
from attncheck.attention.quiet import quiet
from attncheck.compiled import SMALL, missing
from attncheck.compiled.threads import shares, side_by_side

__all__ = ["is_large", "read_heads", "worth_compiled"]

Result = TypeVar("Result")


def worth_compiled(layer: LayerAttention) -> bool:
    """Whether compiled loops may read a layer's weights: many, on a CPU, no float64, with numba."""
    return is_large(layer, "cpu") and missing() is None


def is_large(layer: LayerAttention, device_type: str) -> bool:
    """Whether a layer has so many weights, on such a device, that one read of all pays off.

    Args:
        layer: The layer; float64 is read in no such way.
        device_type: ``"cpu"`` or ``"cuda"``.
    """
    here = layer.device.type == device_type and layer.dtype != torch.float64
    return here and prod(layer.shape) >= SMALL


def read_heads(layer: LayerAttention, read: Callable[[Any, int, slice], Result]) -> list[Result]:
    """Apply a function to the weights of some heads after others, several at once.

    Args:
        layer: Weights on a CPU.
        read: Gets weights as float32 ``(head, query, key)`` of NumPy, the number of the sequence,
            and which heads they are.
    """

    with quiet("cpu"):
        held = layer.weights.detach()
    as_is = held.numpy() if held.dtype == torch.float32 and held.is_contiguous() else None

    def read_one(place: tuple[int, slice]) -> Result:
        sequence, head = place
        if as_is is not None:
            return read(as_is[sequence, head], sequence, head)
        with quiet("cpu"):
            weights = held[sequence, head].float().contiguous().numpy()
        return read(weights, sequence, head)

    places = [(b, head) for b in range(layer.batch) for head in shares(layer.n_heads)]
    return side_by_side(read_one, places)
