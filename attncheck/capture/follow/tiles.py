"""An online softmax: a few keys at a time, as fused kernels do it inside, written out in Python.

Each tile of keys raises its scores beside the largest one so far, multiplies its values, and is
added to what other tiles gave, which is scaled down where the largest score has grown; in the end
the sum is divided by the sum of all. So the output is a sum of products with values, and for each
of them the factor by which its rows were multiplied is known. When all rows together sum to 1, they
are the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from attncheck.capture.follow.parts import sums_to_one
from attncheck.capture.follow.steps import QUOTIENTS, TIMES, Step
from attncheck.capture.follow.traces import Part, Trace, Traces

__all__ = ["Summed", "after_summed", "begins_sum"]

SUMS: Final = ("add", "add_", "__add__", "__radd__", "__iadd__")
SAME: Final = ("contiguous", "clone", "to", "float", "double", "half", "bfloat16", "detach")
"""Functions that change nothing."""

RENORMALISED: Final = (
    "its softmax is computed a few keys at a time and divided by its sum after each of them",
    "Divide once, behind the last tile, call scaled_dot_product_attention, or pass strict=False to "
    "keep the other layers",
)


@dataclass(frozen=True, eq=False)
class Summed:
    """What became of a sum of products with values.

    Attributes:
        trace: What it is now; None: nothing that is followed.
        weights: Whole weights, where it has just become the output of attention.
        trouble: Why that cannot be said, and the way out.
    """

    trace: Trace | None = None
    weights: Tensor | None = None
    trouble: tuple[str, str] | None = None


def begins_sum(name: str, args: Sequence[Any], source: Tensor) -> bool:
    """Whether a function is about to add a first product to a tensor of zeros, in its place."""
    if name not in ("add_", "__iadd__") or not args or args[0] is source:
        return False
    return isinstance(args[0], Tensor) and args[0].shape == source.shape and not bool(args[0].any())


def after_summed(step: Step, traces: Traces) -> Summed:
    """Follow a sum of products with values through one function."""
    others, trace = step.others(), step.trace
    if not isinstance(step.out, Tensor):
        return Summed()
    if step.name == "__getitem__":  # some values, as where a column of ones brings the divisor
        return Summed(trace)
    if step.name in SAME and step.out.shape == step.source.shape:
        return Summed(trace)
    if step.name in SUMS and 0 in (arg for arg in step.args if isinstance(arg, int)):
        return Summed(trace)  # `sum` begins so
    if len(others) != 1:
        return Summed()
    if step.name in SUMS:
        return _added(trace, others[0], traces[others[0]])
    if step.name in TIMES or (step.name in QUOTIENTS and step.args[0] is step.source):
        factor = others[0].detach()
        factor = factor.reciprocal() if step.name in QUOTIENTS else factor.clone()
        return _scaled(trace, factor)
    return Summed()


def _added(trace: Trace, other: Tensor, its: Trace | None) -> Summed:
    if its is not None and its.stage == "attended" and its.reported:
        return Summed(trouble=RENORMALISED)
    if its is None or its.stage != "summed":
        # What is added up begins with zeros; anything else makes it no sum of values.
        return Summed() if bool(other.any()) else Summed(trace)
    if trace.reported != its.reported:
        return Summed(trouble=RENORMALISED)
    return Summed(trace.but(parts=(*trace.parts, *its.parts), hiding=()))


def _scaled(trace: Trace, factor: Tensor) -> Summed:
    if len(trace.parts) == 1:
        part = trace.parts[0]
        factor = _like_rows(factor, part.raised)
    if factor.ndim and factor.shape[-1] != 1:
        return Summed()
    parts = tuple(part.times(factor) for part in trace.parts)
    weights = None if trace.reported else _whole(parts)
    trace = trace.but(parts=parts, reported=trace.reported or weights is not None)
    return Summed(trace, weights)


def _like_rows(factor: Tensor, raised: Tensor) -> Tensor:
    """Lay a divisor that belongs to the rows of one part out like them."""
    rows = raised.shape[:-1]
    return factor.reshape(*rows, 1) if factor.numel() == rows.numel() else factor


def _whole(parts: Sequence[Part]) -> Tensor | None:
    """Put parts beside each other, if they are weights together."""
    try:
        scaled = [part.scaled() for part in parts]
        if len({tensor.shape[:-1] for tensor in scaled}) > 1:
            return None
        weights = torch.cat(_in_order(parts, scaled), dim=-1)
    except RuntimeError:  # they do not broadcast: not what it looked like
        return None
    return weights if sums_to_one(weights) else None


def _in_order(parts: Sequence[Part], scaled: list[Tensor]) -> list[Tensor]:
    """Order tiles by the place of their keys, where these are views of one tensor."""
    if len({part.storage for part in parts}) > 1:
        return scaled
    order = sorted(range(len(parts)), key=lambda number: parts[number].offset)
    return [scaled[number] for number in order]
