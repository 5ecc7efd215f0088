"""Attention without matrix products: every query beside every key, one number for each pair.

Additive attention adds them (``v . tanh(query + key)``) or puts one behind the other, others
multiply them element by element and sum. Both begin with two activations that broadcast against
each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from torch import Tensor

from attncheck.capture.follow.noted import Noted
from attncheck.capture.follow.products import LACKS, Product, elementwise

__all__ = [
    "COMBINATIONS",
    "LAYER_STEPS",
    "MOST_STEPS",
    "NORMS",
    "REPEATS",
    "Repeats",
    "beside",
    "paired",
]

MULTIPLICATIONS: Final = ("mul", "__mul__", "__rmul__", "multiply")
COMBINATIONS: Final = (
    *("add", "__add__", "__radd__", "sub", "__sub__", "subtract", "__rsub__"),
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

AT_ONCE: Final = MOST_STEPS - 4
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
        return (product, AT_ONCE) if name in MULTIPLICATIONS else None
    ahead = product.out[0] in own | its and abs(left.ndim - right.ndim) == 1
    return (product, 0) if ahead and out.ndim <= 3 and name in MULTIPLICATIONS else None


class Repeats:
    """Along which axes, counted from the end, tensors were written several times."""

    def __init__(self) -> None:
        self._held: Noted[frozenset[int]] = Noted()

    def __bool__(self) -> bool:
        return bool(self._held)

    def of(self, tensor: Tensor) -> frozenset[int]:
        """Return the axes of a tensor."""
        return self._held.get(tensor) or frozenset()

    def add(self, source: Tensor, out: Tensor) -> None:
        """Note that a function of `REPEATS` made one tensor of another."""
        sizes = (1,) * (out.ndim - source.ndim) + tuple(source.shape)
        if len(sizes) != out.ndim:
            return
        pairs = enumerate(zip(sizes, out.shape, strict=True))
        axes = frozenset(axis - out.ndim for axis, (own, size) in pairs if own == 1 < size)
        if axes:
            self._held[out] = axes


def beside(
    tensors: Any, dim: Any, out: Tensor, repeats: Callable[[Tensor], frozenset[int]]
) -> Product | None:
    """Read two activations of which one was put behind the other, feature by feature, as pairs.

    Args:
        tensors: That were put behind each other.
        dim: Along which axis.
        out: The result.
        repeats: Returns the axes along which a tensor only repeats itself.
    """
    if not isinstance(tensors, tuple | list) or len(tensors) != 2 or not isinstance(dim, int):
        return None
    left, right = tensors
    if dim % out.ndim != out.ndim - 1 or out.ndim < 3 or left.ndim != right.ndim:
        return None
    gone = repeats(left), repeats(right)
    own, its = gone[1] - gone[0], gone[0] - gone[1]
    if not (own and its) and not (own | its and out.ndim == 3):
        return None
    every = elementwise((out, out), out).out
    letters = tuple(
        tuple(LACKS if axis - out.ndim in lacking else own for axis, own in enumerate(every))
        for lacking in gone
    )
    return Product((left, right), letters, every)
