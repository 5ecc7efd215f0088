"""Products of two activations of one shape: each query beside a key of its own.

Gates multiply so as well, in every layer. Scores are those alone that are summed over their
features at once, so that a product is remembered until then, and not followed.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Final

from torch import Tensor

from attncheck.capture.follow.axes import Atom
from attncheck.capture.follow.origins import Origins
from attncheck.capture.follow.pairs import AT_ONCE
from attncheck.capture.follow.products import place_of
from attncheck.capture.follow.steps import Step
from attncheck.capture.follow.traces import Factors, Part, Trace

__all__ = ["SUMS", "Alike", "of_one_query"]

SUMS: Final = ("sum", "mean")
"""Functions that make one number of the features of a pair."""

POSITIONS_LAST: Final = 4
"""With so many axes features may be another one than the last: ``(batch, size, row, column)``."""


class Alike:
    """Remembers the last product of two activations of one shape.

    Args:
        origins: What does not depend on the model's input.
    """

    def __init__(self, origins: Origins) -> None:
        self._origins = origins
        self._last: weakref.ref[Tensor] | None = None
        self._factors: Factors = ()

    def remember(self, left: Tensor, right: Tensor, out: Any) -> None:
        """Remember a product; squares, and what does not depend on the input, are none of a pair.

        Args:
            left: One factor.
            right: The other.
            out: Their product.
        """
        if left is right or not isinstance(out, Tensor):
            return
        if not any(map(self._origins.is_static, (left, right))):
            self._last = weakref.ref(out)
            self._factors = tuple((_owner(held), place_of(held)) for held in (left, right))

    def scaled(self, product: Any, out: Any) -> None:
        """Remember what was made of such a product and a number.

        Args:
            product: That was multiplied with it.
            out: What came out.
        """
        if self._last is not None and self._last() is product and isinstance(out, Tensor):
            self._last = weakref.ref(out)

    def has(self, source: Any) -> bool:
        """Whether it is the product remembered; a quick look.

        Args:
            source: Of whatever kind.
        """
        return self._last is not None and source is not None and self._last() is source

    def pairs(self, step: Step, product: int) -> Trace | None:
        """Return the trace of a product that is summed over one axis; None: no features are.

        Args:
            step: The sum, of which no trace is known.
            product: Its number.
        """
        source, dims = step.source, step.reduced_dims()
        if dims is None or len(dims) != 1 or not source.is_floating_point():
            return None
        if dims[0] % source.ndim != source.ndim - 1 and source.ndim < POSITIONS_LAST:
            return None
        axes = tuple((Atom((axis,), size, "shared"),) for axis, size in enumerate(source.shape))
        return Trace(
            "pairs",
            axes,
            frozenset(source.shape),
            product=product,
            steps=AT_ONCE,
            place=self._factors[-1][1],
            factors=self._factors,
        )


def of_one_query(parts: Sequence[Part]) -> bool:
    """Whether parts may be keys of the same queries: each was made of one factor and another.

    What gates its own values by a product, place by place, is no attention: there the factors are
    others in each part, or the parts are of one product.

    Args:
        parts: Of a sum of products with values.
    """
    made = [part for part in parts if part.factors]
    if len({part.product for part in made}) < len(made):
        return False
    return all(_share_one(made[0].factors, part.factors) for part in made[1:])


def _share_one(some: Factors, others: Factors) -> bool:
    """Whether one factor is the same here and there: in the same place of memory that lives."""
    return any(
        place == its_place and owner() is not None and owner() is its_owner()
        for owner, place in some
        for its_owner, its_place in others
    )


def _owner(tensor: Tensor) -> weakref.ref[Tensor]:
    base = tensor._base
    return weakref.ref(tensor if base is None else base)
