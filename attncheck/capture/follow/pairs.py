"""Attention without matrix products: every query beside every key, one number for each pair.

Additive attention adds them (``v . tanh(query + key)``) or puts one behind the other, others
multiply them element by element and sum. Both begin with two activations that broadcast against
each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from attncheck.capture.follow.noted import Noted
from attncheck.capture.follow.products import LACKS, Product, elementwise

__all__ = [
    "AT_ONCE",
    "COMBINATIONS",
    "LAYER_STEPS",
    "MOST_STEPS",
    "MULTIPLICATIONS",
    "NORMS",
    "REPEATS",
    "Repeats",
    "beside",
    "paired",
    "put_behind",
    "taken_apart",
]

MULTIPLICATIONS: Final = ("mul", "__mul__", "__rmul__", "multiply")
ADDITIONS: Final = ("add", "__add__", "__radd__")
COMBINATIONS: Final = (
    *ADDITIONS,
    *("sub", "__sub__", "subtract", "__rsub__"),
    *MULTIPLICATIONS,
)
"""Functions that put a query beside a key."""

REPEATS: Final = ("repeat", "repeat_interleave", "tile", "expand", "expand_as", "broadcast_to")
"""Functions that write a tensor several times along an axis."""

NORMS: Final = ("layer_norm", "rms_norm", "group_norm", "batch_norm")
"""Functions that end it: what follows them is a layer of its own."""


MOST_STEPS: Final = 24
"""How many functions pairs are followed through: what a model makes of its layers has no end."""

LAYER_STEPS: Final = 8
"""As how many a layer counts that maps their features: a score takes two of them at most."""

AT_ONCE: Final = MOST_STEPS - 3
"""Where those begin whose products are summed at once, if they are a query and its keys at all."""


def paired(name: str, left: Tensor, right: Tensor, out: Tensor) -> tuple[Product, int] | None:
    """Read two activations that broadcast as pairs of query and key; None: they are none.

    Either both broadcast, ``(..., query, 1, size)`` against ``(..., 1, key, size)``, or one query
    stands beside a sequence, ``(batch, 1, size)`` against ``(batch, key, size)``, or ``(batch,
    size)`` against ``(key, batch, size)``; where they are multiplied, the axis of the keys may be
    anywhere, as in ``(batch, head, query, 1, size)`` against ``(batch, head, query, key, size)``.

    Args:
        name: A function of `COMBINATIONS`.
        left: Its first argument.
        right: Its second.
        out: What it returned.

    Returns:
        The pairs, and how many steps they have behind them.
    """
    if left.shape == right.shape or not left.is_floating_point() or not out.ndim:
        return None
    product = elementwise((left, right), out)
    one, other = (set(letters) - {LACKS} for letters in product.letters)
    own, its = one - other, other - one
    if own and its:
        return product, 0
    last_shared = product.out[-1] in one & other and out.shape[-1] > 1
    if not last_shared or len(own | its) != 1:
        return None
    if left.ndim == right.ndim:
        if out.ndim == 3 and product.out[0] in one & other:
            return product, 0
        return product, AT_ONCE - (LAYER_STEPS if name in ADDITIONS else 0)
    ahead = product.out[0] in own | its and abs(left.ndim - right.ndim) == 1
    return (product, 0) if ahead and out.ndim <= 3 and name in MULTIPLICATIONS else None


@dataclass(frozen=True)
class Repeated:
    """How a tensor repeats itself.

    Attributes:
        whole: Axes, counted from the end, along which there is nothing else.
        inside: An axis in which its own entries stand several times; None: there is none.
        length: How many they are.
        each: Every entry is repeated at once, before the next; else all of them, one after another.
    """

    whole: frozenset[int] = frozenset()
    inside: int | None = None
    length: int = 0
    each: bool = False


class Repeats:
    """How tensors repeat themselves along their axes."""

    def __init__(self) -> None:
        self._held: Noted[Repeated] = Noted()

    def __bool__(self) -> bool:
        return bool(self._held)

    def of(self, tensor: Tensor) -> Repeated:
        """Return what is known of a tensor."""
        return self._held.get(tensor) or Repeated()

    def add(self, name: str, source: Tensor, out: Tensor) -> None:
        """Note that a function of `REPEATS` made one tensor of another."""
        sizes = (1,) * (out.ndim - source.ndim) + tuple(source.shape)
        if len(sizes) != out.ndim:
            return
        pairs = list(enumerate(zip(sizes, out.shape, strict=True)))
        whole = frozenset(axis - out.ndim for axis, (own, size) in pairs if own == 1 < size)
        inside = [axis - out.ndim for axis, (own, size) in pairs if 1 < own < size]
        if len(inside) == 1 and out.shape[inside[0]] % sizes[inside[0]] == 0:
            each = name == "repeat_interleave"
            self._held[out] = Repeated(whole, inside[0], sizes[inside[0]], each)
        elif whole:
            self._held[out] = Repeated(whole)


def put_behind(tensors: Any, dim: Any, out: Tensor) -> bool:
    """Whether two tensors were put behind each other feature by feature.

    Args:
        tensors: That were joined.
        dim: Along which axis.
        out: The result.
    """
    if not isinstance(tensors, tuple | list) or len(tensors) != 2 or not isinstance(dim, int):
        return False
    if not all(isinstance(tensor, Tensor) and tensor.ndim == out.ndim for tensor in tensors):
        return False
    return dim % out.ndim == out.ndim - 1


def beside(
    left: Tensor, right: Tensor, out: Tensor, repeats: Callable[[Tensor], Repeated]
) -> tuple[Product, int | None] | None:
    """Read two activations of one shape, that were combined or put behind each other, as pairs.

    Args:
        left: One of them.
        right: The other.
        out: What was made of them.
        repeats: Says how a tensor repeats itself.

    Returns:
        The pairs, and which axis of `out` holds queries and keys, each query with all keys or
        each key with all queries; the pairs have two axes in its place. None: in two axes anyway.
    """
    gone = repeats(left), repeats(right)
    axis = _shared_axis(gone, out)
    view = out if axis is None else taken_apart(out, axis)
    lacks = tuple(_lacking(one, axis) for one in gone)
    own, its = lacks[1] - lacks[0], lacks[0] - lacks[1]
    if not (own and its) and not (own | its and out.ndim == 3):
        return None
    every = elementwise((view, view), view).out
    letters = tuple(
        tuple(LACKS if i - view.ndim in lacking else letter for i, letter in enumerate(every))
        for lacking in lacks
    )
    return Product((left, right), letters, every), axis


def taken_apart(out: Tensor, axis: int) -> Tensor:
    """Return a view of pairs that has an axis of queries and one of keys in the place of one."""
    size, place = math.isqrt(out.shape[axis]), axis % out.ndim
    return out.detach().reshape(*out.shape[:place], size, size, *out.shape[place + 1 :])


def _shared_axis(gone: tuple[Repeated, Repeated], out: Tensor) -> int | None:
    """Which axis holds all pairs of entries: of one tensor each at once, of the other all."""
    one, other = gone
    if one.inside is None or one.inside != other.inside or one.each == other.each:
        return None
    square = one.length == other.length and out.shape[one.inside] == one.length**2
    return one.inside if square and one.inside != -1 else None


def _lacking(repeated: Repeated, axis: int | None) -> frozenset[int]:
    """Which axes a tensor lacks, where one of them is taken apart into queries and keys."""
    if axis is None:
        return repeated.whole
    moved = frozenset(own if own > axis else own - 1 for own in repeated.whole)
    return moved | {axis if repeated.each else axis - 1}
