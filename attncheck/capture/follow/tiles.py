"""An online softmax: a few keys at a time, as fused kernels do it inside, written out in Python.

Each tile of keys raises its scores beside the largest one so far, multiplies its values, and is
added to what other tiles gave, which is scaled down where the largest score has grown; in the end
the sum is divided by the sum of all. So the output is a sum of products with values, and for each
of them the factor by which its rows were multiplied is known. When all rows together sum to 1, they
are the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from attncheck.capture.follow.alike import of_one_query
from attncheck.capture.follow.parts import is_one_hot, sums_to_one
from attncheck.capture.follow.steps import ADDITIONS, QUOTIENTS, TIMES, Step
from attncheck.capture.follow.sums import sums_among
from attncheck.capture.follow.traces import Part, Trace, Traces

__all__ = ["Summed", "after_summed", "begins_sum"]

SAME: Final = ("contiguous", "clone", "to", "float", "double", "half", "bfloat16", "detach")
"""Functions that change nothing."""

RENORMALISED: Final = (
    "its softmax is computed a few keys at a time and divided by its sum after each of them",
    "Divide once, behind the last tile, call scaled_dot_product_attention, or pass strict=False to "
    "keep the other layers",
)


VISITED: Final = (
    "nothing tells where the keys of its parts stand: they are numbered in the order in which the "
    "parts were added up"
)


@dataclass(frozen=True, eq=False)
class Summed:
    """What became of a sum of products with values.

    Attributes:
        trace: What it is now; None: nothing that is followed.
        weights: Whole weights, where it has just become the output of attention.
        trouble: Why that cannot be said, and the way out.
        note: What is to be known of the weights.
        divided: Numbers of the products whose parts were divided by sums over keys just now.
    """

    trace: Trace | None = None
    weights: Tensor | None = None
    trouble: tuple[str, str] | None = None
    note: str = ""
    divided: tuple[int, ...] = ()


APART: Final = (
    "its softmax scores a key of each query's own apart from those that all queries share",
    "Score all keys in one product, call scaled_dot_product_attention, or pass strict=False to "
    "keep the other layers",
)
MOST_ASTRAY: Final = 3
"""How many functions a sum is followed through to which something unknown was added."""


def begins_sum(name: str, args: Sequence[Any], source: Tensor) -> bool:
    """Whether a function is about to add a first product to a tensor of zeros, in its place."""
    if name not in ("add_", "__iadd__") or not args or args[0] is source:
        return False
    return isinstance(args[0], Tensor) and args[0].shape == source.shape and not bool(args[0].any())


def after_summed(step: Step, traces: Traces) -> Summed:
    """Follow a sum of products with values through one function."""
    others, trace = step.others(), step.trace
    if not isinstance(step.out, Tensor) or trace.astray > MOST_ASTRAY:
        return Summed()
    if trace.astray:
        trace = trace.but(astray=trace.astray + 1)
    if step.name == "__getitem__":  # some values, as where a column of ones brings the divisor
        return Summed(trace)
    if step.name in SAME and step.out.shape == step.source.shape:
        return Summed(trace)
    if step.name in ADDITIONS and 0 in (arg for arg in step.args if isinstance(arg, int)):
        return Summed(trace)  # `sum` begins so
    if step.name == "stack" or trace.apart is not None:
        return _stacked(step, trace, traces)
    if len(others) != 1:
        return Summed()
    if step.name in ADDITIONS:
        return _added(trace, others[0], traces[others[0]])
    if step.name in TIMES or (step.name in QUOTIENTS and step.args[0] is step.source):
        factor = others[0].detach()
        factor = factor.reciprocal() if step.name in QUOTIENTS else factor.clone()
        return _scaled(step, factor, sums_among(step, traces))
    return Summed()


def _stacked(step: Step, trace: Trace, traces: Traces) -> Summed:
    """Follow products with values that are stacked, and then summed over the new axis."""
    if trace.apart is not None:
        gone = [dim % step.source.ndim for dim in step.reduced_dims() or ()]
        added = step.name == "sum" and gone == [trace.apart]
        return Summed(trace.but(apart=None) if added else None)
    known = [traces[part] for part in step.args[0]]
    parts = [part for one in known if one is not None for part in one.parts]
    if trace.reported or any(one is None or one.stage != "summed" for one in known):
        return Summed()
    if not of_one_query(parts):
        return Summed()
    dim = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim", 0)
    return Summed(trace.but(parts=tuple(parts), hiding=(), apart=dim % step.out.ndim))


def _added(trace: Trace, other: Tensor, its: Trace | None) -> Summed:
    if its is not None and its.stage == "attended" and its.reported:
        return Summed(trouble=RENORMALISED)
    if its is None or its.stage != "summed":
        # What is added up begins with zeros; anything else makes it no sum of values.
        if not bool(other.any()):
            return Summed(trace)
        if trace.reported or any(part.factors for part in trace.parts):
            return Summed()  # gates multiply so as well, and are added up to anything
        return Summed(trace.but(astray=1))
    if its.astray and not trace.astray:
        trace = trace.but(astray=its.astray)
    if trace.reported != its.reported:
        return Summed(trouble=RENORMALISED)
    trace = trace.but(parts=(*trace.parts, *its.parts), hiding=())
    if not of_one_query(trace.parts):
        return Summed()
    if trace.reported or not all(part.divided for part in trace.parts):
        return Summed(trace)
    return _if_whole(trace, bool(trace.sliced))


def _scaled(step: Step, factor: Tensor, sums: Trace | None) -> Summed:
    trace = step.trace
    if trace.astray:  # it is no sum of values alone, but divided like one
        return Summed(divided=tuple(part.product for part in trace.parts if sums is not None))
    if len(trace.parts) == 1:
        part = trace.parts[0]
        if part.factors and part.raised.shape[-1] == 1 and step.name in QUOTIENTS:
            return Summed()  # by itself: 1, whatever it was
        factor = _like_rows(factor, part.raised)
    if factor.ndim and factor.shape[-1] != 1:
        return Summed()
    parts = tuple(part.times(factor, sums is not None) for part in trace.parts)
    divided = tuple(part.product for part in parts if part.divided and sums is not None)
    trace = trace.but(parts=parts)
    if trace.reported:
        return Summed(trace)
    rest = sums is not None and sums.n_key == sum(part.raised.shape[-1] for part in parts)
    by_chance = sums is None and step.name in TIMES
    return replace(_if_whole(trace, rest, by_chance), divided=divided)


def _if_whole(trace: Trace, rest: bool, by_chance: bool = False) -> Summed:
    """Put parts beside each other, if they are weights together.

    Args:
        trace: Of their sum.
        rest: Rows may sum to less than 1: they were divided by more than their own sums.
        by_chance: They were only scaled: a single key sums to 1 where it is the largest so far.
    """
    found = _beside(trace.parts)
    if found is None:
        return Summed(trace)
    weights, note = found
    exact = sums_to_one(weights)
    if exact and by_chance and is_one_hot(weights):
        return Summed(trace)
    if not exact and not (rest and sums_to_one(weights, sliced=True)):
        return Summed(trace)
    if _has_some_apart(trace.parts, weights):
        return Summed(trouble=APART)
    return Summed(trace.but(reported=True, sliced=int(not exact)), weights, note=note)


def _like_rows(factor: Tensor, raised: Tensor) -> Tensor:
    """Lay a divisor that belongs to the rows of one part out like them."""
    rows = raised.shape[:-1]
    return factor.reshape(*rows, 1) if factor.numel() == rows.numel() else factor


def _beside(parts: Sequence[Part]) -> tuple[Tensor, str] | None:
    """Put parts beside each other; return a note as well, if their order is a guess."""
    order = _order(parts)
    try:
        scaled = [part.scaled() for part in parts]
        if len({tensor.shape[:-1] for tensor in scaled}) > 1:
            return None
        if _share_their_keys(parts, scaled):
            return torch.stack(scaled).sum(0), ""
        whole = _on_the_diagonal(parts, scaled)
        if whole is not None:
            return whole, ""
        ordered = [scaled[number] for number in order or range(len(parts))]
        told = order is not None or any(part.own for part in parts)
        return torch.cat(ordered, dim=-1), "" if told else VISITED
    except RuntimeError:  # they do not broadcast: not what it looked like
        return None


def _on_the_diagonal(parts: Sequence[Part], scaled: Sequence[Tensor]) -> Tensor | None:
    """Put the key of each query's own among the others, which hide it; None: it is not there."""
    if len(parts) != 2 or parts[0].own == parts[1].own or parts[0].places[0] != parts[1].places[0]:
        return None
    own, others = scaled if parts[0].own else scaled[::-1]
    diagonal = others.diagonal(dim1=-2, dim2=-1)
    if own.shape[-1] != 1 or diagonal.shape[-1] != others.shape[-1] or bool(diagonal.any()):
        return None
    whole = others.clone()
    whole.diagonal(dim1=-2, dim2=-1).copy_(own.squeeze(-1))
    return whole


def _has_some_apart(parts: Sequence[Part], weights: Tensor) -> bool:
    """Whether some queries' own keys are beside those that all share: they have no positions."""
    n_query, n_key = weights.shape[-2:]
    if n_query == 1 or n_key != sum(part.raised.shape[-1] for part in parts):
        return False
    return len({part.own for part in parts}) > 1


def _share_their_keys(parts: Sequence[Part], scaled: Sequence[Tensor]) -> bool:
    """Whether parts are of the same keys, each with those that the others hide.

    That keys lie in the same place is not enough: a copy may have been made where one was before.
    """
    keys, shapes = {part.places[0] for part in parts}, {tensor.shape for tensor in scaled}
    if len(parts) < 2 or len(keys) > 1 or len(shapes) > 1 or next(iter(keys))[0] == 0:
        return False
    return int(torch.stack([tensor != 0 for tensor in scaled]).sum(0).max()) <= 1


def _order(parts: Sequence[Part]) -> list[int] | None:
    """Order parts by where their keys, or else their values, are in one tensor; None: unknown."""
    if len(parts) == 1:
        return [0]
    for places in zip(*(part.places for part in parts), strict=True):
        storages = {storage for storage, _ in places}
        if len(storages) == 1 and storages != {0} and len(set(places)) == len(places):
            return sorted(range(len(places)), key=places.__getitem__)
    return None
