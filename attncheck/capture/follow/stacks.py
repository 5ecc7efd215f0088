"""Scores of several products, put beside each other: of one key each, of one query, of one head.

Which of these a new axis is for shows only where a softmax runs over it. Scores of single keys lack
the axis that keys have, so an axis along which they stand is that of the keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from torch import Tensor

from attncheck.capture.follow.axes import Atom, Axes, joined, numbers_in
from attncheck.capture.follow.steps import Step
from attncheck.capture.follow.traces import Trace

__all__ = [
    "NEW",
    "NO_AXIS",
    "is_one_key",
    "is_own_key",
    "may_be_keys",
    "over_keys",
    "put_beside",
    "stacked",
    "written",
]

NEW: Final = 1000
"""Axes that neither query nor key had are numbered from here on."""

NO_AXIS: Final = frozenset({-(1 << 40)})
"""What stands for the axes of an operand that does not depend on the input and has none."""


def over_keys(trace: Trace, atoms: Sequence[Atom]) -> bool:
    """Whether a softmax or a sum over an axis is one over keys, or over queries.

    Args:
        trace: Of scores.
        atoms: Of the axis.
    """
    sides = {atom.side for atom in atoms}
    if sides in ({"left"}, {"right"}):
        return True
    if not trace.stacked or trace.axes is None or trace.fixed:
        return False
    numbers = numbers_in(atoms)
    if not numbers or not numbers <= trace.stacked:
        return False
    return is_one_key(trace.axes, numbers)


def may_be_keys(trace: Trace, atoms: Sequence[Atom]) -> bool:
    """Whether an axis of scores may be that of keys, by where it comes from.

    Args:
        trace: Of scores.
        atoms: Of the axis.
    """
    return any(atom.side != "shared" for atom in atoms) or over_keys(trace, atoms)


def is_one_key(axes: Axes, keys: frozenset[int] = frozenset()) -> bool:
    """Whether axes but those of the keys are of one side at most: all keys were scored alone."""
    rest = (a for held in axes for a in held if a.number not in keys and a.size > 1)
    return len({atom.side for atom in rest} - {"shared"}) < 2


def is_own_key(axes: Axes, keys: frozenset[int] = frozenset()) -> bool:
    """Whether axes but those of the keys are of no side: each query met keys of its own."""
    return all(a.side == "shared" for held in axes for a in held if a.number not in keys)


def put_beside(trace: Trace, axes: Axes | None, target: Tensor) -> Trace:
    """Return the trace of scores that stand beside others, in axes of their own or in new ones.

    Args:
        trace: Of those scores.
        axes: Of all together; None: not known.
        target: That holds them all.
    """
    new = _numbers(axes or ()) - _numbers(trace.axes or ())
    sizes = trace.sizes | set(target.shape)
    return trace.but(axes=axes, stacked=trace.stacked | new, sizes=sizes)


def stacked(step: Step, target: Tensor) -> Axes | None:
    """Return the axes of what a function of `JOINS` put beside or above each other."""
    axes, shape = step.trace.axes, step.source.shape
    if axes is None:
        return None
    dim = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim", 0)
    if not isinstance(dim, int):
        return None
    dim %= target.ndim
    if step.name == "stack":
        return (*axes[:dim], *_new(axes, dim, target.shape[dim], step.trace.product), *axes[dim:])
    if not axes[dim] and shape[dim] == 1:
        new = _new(axes, dim, target.shape[dim], step.trace.product)
        return (*axes[:dim], *new, *axes[dim + 1 :])
    return joined(step.name, axes, shape, target)


def written(step: Step, target: Tensor) -> Axes | None:
    """Return the axes of a tensor into part of which scores were written; None: not known.

    An axis that is indexed by a number is a new one, and so is one of length 1 that nobody had.
    """
    axes, source = step.trace.axes, step.source
    index = _spelled_out(step.args[1], target.ndim)
    if axes is None or index is None or sum(isinstance(i, slice) for i in index) != len(axes):
        return step.axes_of(target)
    made: Axes = ()
    own = iter(zip(axes, source.shape, strict=True))
    for dim, place in enumerate(index):
        size = target.shape[dim]
        atoms, held = ((), 1) if isinstance(place, int) else next(own)
        if not atoms and size > 1:
            made += _new(axes + made, dim, size, step.trace.product)
        elif held == size or not atoms:
            made += (atoms,)
        elif len(atoms) == 1:
            made += ((atoms[0]._replace(size=size),),)
        else:
            return None
    return made


def _spelled_out(index: Any, ndim: int) -> list[int | slice] | None:
    """Return one index for each axis; None: some are of another kind."""
    given = list(index) if isinstance(index, tuple) else [index]
    if sum(i is Ellipsis for i in given) > 1:
        return None
    if Ellipsis not in given:
        given.append(Ellipsis)
    place = given.index(Ellipsis)
    given[place : place + 1] = [slice(None)] * (ndim - len(given) + 1)
    return given if all(isinstance(i, int | slice) for i in given) else None


def _new(axes: Axes, dim: int, size: int, product: int) -> Axes:
    """Make an axis; one in front of all others is numbered before them, as a batch is."""
    number, step = (-product, -NEW) if dim == 0 else (NEW + product, NEW)
    taken = _numbers(axes)
    while number in taken:
        number += step
    return ((Atom((number,), size, "shared"),),)


def _numbers(axes: Iterable[Sequence[Atom]]) -> frozenset[int]:
    return numbers_in([atom for atoms in axes for atom in atoms])
