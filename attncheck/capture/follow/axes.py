"""What happens to the axes of a tensor: a small algebra, on shapes alone.

Every axis of scores is made of atoms, which remember the operand of the product that they come
from. Permuting moves axes, reshaping merges atoms and splits them, cutting shortens them,
broadcasting adds axes that have none. So it is known at any later point which axes are queries and
which are keys, and a tensor that was folded, ``(head * batch, query, key)``, can be unfolded again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from torch import Tensor

__all__ = [
    "FEATURES",
    "JOINS",
    "MOVES",
    "Atom",
    "Axes",
    "after",
    "joined",
    "numbers_in",
    "reduced",
    "unfolded",
]

Side: TypeAlias = Literal["left", "right", "shared"]


class Atom(NamedTuple):
    """An axis, or a part of one.

    Attributes:
        place: Its number, in the order of the axes of query and key; parts count on below it.
        size: Its length.
        side: The only operand of the product that had it, or ``"shared"``.
    """

    place: tuple[int, ...]
    size: int
    side: Side

    @property
    def number(self) -> int:
        """Of the axis that it is a part of."""
        return self.place[0]


Axes: TypeAlias = tuple[tuple[Atom, ...], ...]

FEATURES: Final = 1 << 40
"""Number of the axis that comes from values, in what they and weights gave."""

JOINS: Final = ("cat", "concat", "concatenate", "stack")
"""Functions that take their tensors as one list."""

SWAPS: Final = ("transpose", "transpose_", "swapaxes", "swapdims")
TURNS: Final = ("t", "t_", "T", "mT", "H", "mH", "adjoint")
SHIFTS: Final = ("movedim", "moveaxis")
RESHAPES: Final = (
    *("view", "reshape", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze"),
    *("view_as", "reshape_as", "_unsafe_view", "squeeze_", "unsqueeze_", "atleast_3d"),
)
EXPANDS: Final = ("expand", "expand_as", "broadcast_to")
MOVES: Final = frozenset({"permute", *SWAPS, *TURNS, *SHIFTS, *RESHAPES, *EXPANDS})
"""Functions that only lay numbers out anew."""


def numbers_in(axes: Sequence[Atom]) -> frozenset[int]:
    """Numbers of the axes that some atoms are part of."""
    return frozenset(atom.place[0] for atom in axes)


def after(
    function: Callable[..., Any],
    name: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    axes: Axes | None,
    shape: Sequence[int],
    part: Tensor,
) -> Axes | None:
    """Return the axes of what a function returned; None: not known.

    Args:
        function: That was called.
        name: Of it.
        args: That it got, the traced tensor first.
        kwargs: That it got.
        axes: Of the traced tensor.
        shape: Of the traced tensor, before the call.
        part: One of the tensors that it returned.
    """
    if axes is None:
        return None
    if name == "__get__":
        name = getattr(getattr(function, "__self__", None), "__name__", "")
    order = _order(name, args[1:], kwargs, len(axes))
    if order is not None:
        return tuple(axes[axis] for axis in order)
    if name in ("select", "unbind"):
        dim = _given(args[1:], kwargs, "dim", 0)
        return _without(axes, dim) if isinstance(dim, int) else None
    if name == "__getitem__":
        return _indexed(axes, args[1], part.shape)
    if part.shape == tuple(shape):
        return axes
    if name in RESHAPES and part.numel() == math.prod(shape):
        return _regrouped(axes, part.shape)
    if part.ndim >= len(axes) and part.numel() >= math.prod(shape):
        return _broadcast(axes, shape, part.shape)
    if part.ndim == len(axes):
        return _shortened(axes, part.shape)
    return None


def _given(args: Sequence[Any], kwargs: Mapping[str, Any], name: str, default: Any) -> Any:
    return args[0] if args else kwargs.get(name, default)


def _order(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], ndim: int
) -> list[int] | None:
    """Return which axis stands where after a permutation; None: it is none."""
    order = list(range(ndim))
    if name == "permute":
        dims = args if len(args) > 1 else _given(args, kwargs, "dims", ())
        return [dim % ndim for dim in dims]
    if name in SWAPS:
        first, second = args if len(args) == 2 else list(kwargs.values())[-2:]
        order[first], order[second] = order[second], order[first]
        return order
    if name in TURNS and ndim >= 2:
        if name == "T":
            return order[::-1]
        order[-1], order[-2] = order[-2], order[-1]
        return order
    if name in SHIFTS:
        sources, targets = args if len(args) == 2 else list(kwargs.values())[-2:]
        sources = [sources] if isinstance(sources, int) else list(sources)
        targets = [targets] if isinstance(targets, int) else list(targets)
        moved = {
            target % ndim: source % ndim for source, target in zip(sources, targets, strict=True)
        }
        rest = iter(axis for axis in order if axis not in moved.values())
        return [moved[axis] if axis in moved else next(rest) for axis in order]
    return None


def _without(axes: Axes, dim: int) -> Axes:
    dim %= len(axes)
    return axes[:dim] + axes[dim + 1 :]


def _indexed(axes: Axes, index: Any, shape: Sequence[int]) -> Axes | None:
    """Index by numbers, slices, None and an ellipsis."""
    given = list(index) if isinstance(index, tuple) else [index]
    if any(not (i is None or i is Ellipsis or isinstance(i, int | slice)) for i in given):
        return None
    used = sum(i is not None and i is not Ellipsis for i in given)
    if Ellipsis not in given:
        given.append(Ellipsis)
    place = given.index(Ellipsis)
    given[place : place + 1] = [slice(None)] * (len(axes) - used)
    left = iter(axes)
    kept: list[tuple[Atom, ...]] = []
    for i in given:
        if i is None:
            kept.append(())
        elif isinstance(i, slice):
            kept.append(next(left))
        else:
            next(left)
    return _shortened(tuple(kept), shape) if len(kept) == len(shape) else None


def _shortened(axes: Axes, shape: Sequence[int]) -> Axes | None:
    """Cut axes down to a shape; one that is made of several atoms cannot be cut."""
    made: list[tuple[Atom, ...]] = []
    for atoms, size in zip(axes, shape, strict=True):
        if math.prod(atom.size for atom in atoms) == size or not atoms:
            made.append(atoms)
        elif len(atoms) == 1:
            made.append((atoms[0]._replace(size=size),))
        else:
            return None
    return tuple(made)


def _broadcast(axes: Axes, shape: Sequence[int], wider: Sequence[int]) -> Axes | None:
    """Align axes to the right, as broadcasting does."""
    ahead = len(wider) - len(axes)
    same = all(size in (1, own) for size, own in zip(shape, wider[ahead:], strict=True))
    return ((),) * ahead + axes if same else None


def _regrouped(axes: Axes, shape: Sequence[int]) -> Axes | None:
    """Read atoms in order into a new shape, splitting what has to be split."""
    left = [atom for atoms in axes for atom in atoms if atom.size != 1]
    if math.prod(atom.size for atom in left) != math.prod(shape):
        return None
    made: list[tuple[Atom, ...]] = []
    for size in shape:
        taken: list[Atom] = []
        while size > 1:
            atom = left.pop(0)
            if size % atom.size == 0:
                taken.append(atom)
                size //= atom.size
            elif atom.size % size == 0:
                first, rest = (*atom.place, 0), (*atom.place, 1)
                taken.append(Atom(first, size, atom.side))
                left.insert(0, Atom(rest, atom.size // size, atom.side))
                size = 1
            else:
                return None
        made.append(tuple(taken))
    return tuple(made)


def joined(name: str, axes: Axes | None, shape: Sequence[int], out: Tensor) -> Axes | None:
    """Return the axes of tensors that were put beside each other.

    Args:
        name: A function of `JOINS`.
        axes: Of one of them.
        shape: Of that one.
        out: All together.
    """
    if axes is None:
        return None
    if name == "stack":
        return None  # filled in by who knows the axis
    made = []
    for atoms, size, own in zip(axes, out.shape, shape, strict=True):
        if size == own:
            made.append(atoms)
        elif len(atoms) == 1:
            made.append((atoms[0]._replace(size=size),))
        else:
            return None
    return tuple(made)


def reduced(axes: Axes, dims: Sequence[int], *, kept: bool) -> Axes:
    """Return the axes that a sum over some of them leaves."""
    gone = {dim % len(axes) for dim in dims}
    if kept:
        return tuple(() if axis in gone else atoms for axis, atoms in enumerate(axes))
    return tuple(atoms for axis, atoms in enumerate(axes) if axis not in gone)


def unfolded(tensor: Tensor, axes: Axes) -> tuple[Tensor, list[Atom]] | None:
    """Give every atom an axis of its own; None: some axis is not known.

    Args:
        tensor: To unfold.
        axes: Of it.
    """
    atoms = [atom for held in axes for atom in held]
    if math.prod(atom.size for atom in atoms) != tensor.numel():
        return None
    places = {atom.place for atom in atoms}
    if len(places) != len(atoms):
        return None
    return tensor.reshape([atom.size for atom in atoms]), atoms
