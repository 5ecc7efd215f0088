"""`DTensor`: a call of attention whose tensors lie in parts on several ranks.

Whole heads and whole sequences are measured where they are; `gather_profiles` puts the ranks'
tables together. What is divided along queries or keys has no row of weights on any rank.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from torch import Tensor

from attncheck.capture.call import AttentionCall
from attncheck.capture.plain import UnreadableError

__all__ = ["held_here", "is_divided", "local_call"]

AXES: Final = ("batch", "heads", "queries", "sizes")
WAY_OUT: Final = (
    "Divide the heads, or the batch, of query, key, value and mask alike (Shard(1) or Shard(0) of "
    "(batch, head, query, size)), or capture the model on one rank"
)


def is_divided(tensor: Tensor) -> bool:
    """Whether a tensor is a `DTensor`; asked without importing it."""
    return hasattr(tensor, "placements") and hasattr(tensor, "to_local")


def held_here(tensor: Tensor) -> Tensor:
    """Return this rank's part of a `DTensor`, and any other tensor as it is."""
    return tensor.to_local() if is_divided(tensor) else tensor  # type: ignore[attr-defined]


def local_call(call: AttentionCall) -> AttentionCall:
    """Return this rank's part of a call on `DTensor`, and any other call as it is.

    Raises:
        UnreadableError: Its parts are not whole rows of the same heads and sequences.
    """
    tensors = {name: value for name, value in vars(call).items() if isinstance(value, Tensor)}
    if not any(is_divided(tensor) for tensor in tensors.values()):
        return call
    whole: Any = call.output
    if not is_divided(whole):
        raise UnreadableError("its inputs are DTensor and its output is none", WAY_OUT)
    axes = [_axis(placement) for placement in whole.placements]
    changed: dict[str, Any] = {
        name: _part(name, tensor, whole, axes) for name, tensor in tensors.items()
    }
    changed["first_head"] = _first(whole, call.shape[1])
    if call.without_dropout is not None:
        again = call.without_dropout
        changed["without_dropout"] = lambda: held_here(again())
    local = replace(call, **changed)
    if call.shape[1] * local.n_key_value_heads != local.shape[1] * call.n_key_value_heads:
        raise UnreadableError(
            f"this rank has {local.shape[1]} of {call.shape[1]} heads, but "
            f"{local.n_key_value_heads} of {call.n_key_value_heads} key-value heads",
            WAY_OUT,
        )
    return local


def _axis(placement: Any) -> int | None:
    """Which axis of the output a mesh dimension divides: 0, 1 or none."""
    if placement.is_replicate():
        return None
    axis = getattr(placement, "dim", None)
    if placement.is_shard() and axis in (0, 1):
        return int(axis)
    what = "is a sum still to be made" if axis is None else f"is divided along its {AXES[axis]}"
    raise UnreadableError(f"its output, a DTensor, {what}", WAY_OUT)


def _part(name: str, tensor: Tensor, whole: Any, axes: list[int | None]) -> Tensor:
    """Return what of a tensor belongs to this rank's part of the output.

    Args:
        name: What it is.
        tensor: Divided as the output is, or held whole by every rank.
        whole: The output.
        axes: Which of its axes each dimension of the mesh divides.
    """
    held = held_here(tensor)
    for number, axis in enumerate(axes):
        placement = tensor.placements[number] if is_divided(tensor) else None  # type: ignore[attr-defined]
        kept_whole = placement is None or placement.is_replicate()
        own = None if kept_whole else getattr(placement, "dim", -1)
        wanted = axis
        if name == "sinks" and tensor.ndim == 1:  # (head,)
            wanted = 0 if axis == 1 else None
        if own is None and wanted is not None and tensor.shape[wanted] > 1:
            start, size = _chunk(whole.device_mesh, number, held.shape[wanted])
            held = held.narrow(wanted, start, size)
        elif own is not None and own != wanted:
            raise UnreadableError(f"its {name} is not divided as its output is", WAY_OUT)
    return held


def _first(tensor: Any, n_heads: int) -> int:
    """Which of all heads is the first here."""
    first = 0
    for number, placement in enumerate(tensor.placements):
        if placement.is_shard(1):
            start, n_heads = _chunk(tensor.device_mesh, number, n_heads)
            first += start
    return first


def _chunk(mesh: Any, number: int, size: int) -> tuple[int, int]:
    """Where this rank's part of an axis starts, and its size: cut as `torch.chunk` does."""
    step = -(-size // mesh.size(number))
    start = min(size, step * mesh.get_local_rank(number))
    return start, min(step, size - start)
