"""Weights that are used in parts: some keys, heads or queries at a time.

One softmax may span several sets of keys (global and local ones, a memory and the sequence); each
share of its columns then multiplies values of its own, and the products are added. Each share alone
sums to less than 1; together they are the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from attncheck.capture.fidelity import compared_rows
from attncheck.capture.follow.axes import Axes, numbers_in
from attncheck.capture.follow.steps import Step
from attncheck.capture.follow.traces import Trace
from attncheck.capture.follow.widened import cuts_foreign
from attncheck.capture.sharded import held_here
from attncheck.tolerances import tolerance_for

__all__ = ["CUTS", "Columns", "cut", "is_one_hot", "keys_last", "sums_to_one"]

CUTS: Final = (
    *("__getitem__", "narrow", "select", "split", "split_with_sizes", "chunk", "tensor_split"),
    *("unbind", "unsafe_split", "unsafe_chunk"),
)
"""Functions that cut parts out of a tensor."""


def cut(step: Step) -> Iterator[tuple[Tensor, Trace]]:
    """Yield every part that a function of `CUTS` cut out of weights, with its trace."""
    held = step.out if isinstance(step.out, tuple | list) else (step.out,)
    for part in held:
        if step.keeps(part):
            yield part, _part(step, part)


def _part(step: Step, part: Tensor) -> Trace:
    trace, source, axes = step.trace, step.source, step.axes_of(part)
    if part.numel() >= source.numel():
        return trace.but(axes=axes)
    columns = _columns(source, part, trace)
    if columns is not None and cuts_foreign(columns, trace):  # the share of a sink, which is no key
        return trace.but(axes=axes, sliced=trace.n_key - (columns[1] - columns[0]))
    if columns is None and axes is not None and _whole_rows(axes, trace):
        # Some queries or heads: rows are still whole, and the softmax is reported once.
        columns = trace.columns
    elif columns is None:
        columns = (-1, -1)
    elif trace.columns is not None:
        columns = (trace.columns[0] + columns[0], trace.columns[0] + columns[1])
    own, own_axes = trace.own, trace.own_axes
    if own is None:
        own, own_axes = source.detach(), trace.axes
    changed = trace.changed or "scaled"
    return trace.but(
        axes=axes, columns=columns, own=own, own_axes=own_axes, changed=changed, part=True
    )


def _whole_rows(axes: Axes, trace: Trace) -> bool:
    sizes = [atom.size for atoms in axes for atom in atoms if atom.place[0] in trace.keys]
    return math.prod(sizes) == trace.n_key


def _columns(source: Tensor, part: Tensor, trace: Trace) -> tuple[int, int] | None:
    """Return the range of keys that a view of weights holds, if it holds not all of them."""
    axis = _cut_axis(source, part)
    if axis is None or source.shape[axis] != trace.n_key:
        return None
    if trace.axes is not None and trace.keys and not numbers_in(trace.axes[axis]) & trace.keys:
        return None  # some queries, of which there are as many
    distance = part.storage_offset() - source.storage_offset()
    start = distance // max(source.stride(axis), 1)
    return start, start + (part.shape[axis] if part.ndim == source.ndim else 1)


def _cut_axis(source: Tensor, part: Tensor) -> int | None:
    """Along which axis a view was cut: one that is shorter or gone; None: another, or several."""
    ndim = source.ndim
    if part.ndim == ndim and part.stride() == source.stride():
        shorter = [axis for axis in range(ndim) if part.shape[axis] != source.shape[axis]]
        return shorter[0] if len(shorter) == 1 else None
    if part.ndim != ndim - 1:
        return None
    layout = list(zip(source.shape, source.stride(), strict=True))
    left = list(zip(part.shape, part.stride(), strict=True))
    gone = [axis for axis in range(ndim) if layout[:axis] + layout[axis + 1 :] == left]
    return gone[0] if len(gone) == 1 else None


def keys_last(weights: Tensor, n_key: int) -> Tensor | None:
    """Move the axis that sums to 1 to the end; None: there is no such."""
    for axis in reversed(range(weights.ndim)):
        if weights.shape[axis] == n_key:
            moved = weights.movedim(axis, -1)
            if sums_to_one(moved):
                return moved
    return None


def sums_to_one(weights: Tensor, *, sliced: bool = False) -> bool:
    """Whether a few rows are weights: the axis that is summed is the axis of the softmax.

    Args:
        weights: Keys in the last axis.
        sliced: A sink may have a share.
    """
    weights = held_here(weights)
    if not weights.is_floating_point():
        return False
    with torch.no_grad(), torch._C.DisableTorchFunction():
        if weights.ndim > 1:
            rows = compared_rows(weights.shape[-2], weights.device)
            weights = weights.index_select(-2, rows)
        sums = weights.sum(-1, dtype=torch.float64)
        allowed = tolerance_for(weights.dtype).row_sum
        low, high = (float(sum_) for sum_ in sums.aminmax()) if sums.numel() else (1.0, 1.0)
        if 1 - allowed <= low and high <= 1 + allowed:  # the common case, and no NaN
            return True
        fine = sums <= 1 + allowed if sliced else (sums - 1).abs() <= allowed
        return bool((fine | (sums == 0) | sums.isnan()).all())


def is_one_hot(weights: Tensor) -> bool:
    """Whether each row has all of its weight on one key."""
    with torch.no_grad(), torch._C.DisableTorchFunction():
        return bool((held_here(weights).amax(-1) == 1).all())


class Columns:
    """Which columns of each softmax have multiplied values."""

    def __init__(self) -> None:
        self._seen: dict[int, set[int]] = {}

    def completed_by(self, trace: Trace) -> bool:
        """Add the columns of a part; whether all keys of its softmax are covered now."""
        assert trace.columns is not None
        seen = self._seen.setdefault(trace.softmax, set())
        seen.update(range(*trace.columns))
        return len(seen) == trace.n_key
