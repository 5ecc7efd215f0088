"""The masks that a module puts on its own scores, read out of the functions that it calls."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from attncheck.attention.masks import HIDDEN_BELOW
from attncheck.capture.follow.axes import Axes
from attncheck.capture.follow.steps import Step
from attncheck.capture.follow.traces import Hiding, How
from attncheck.capture.plain import numbers_of
from attncheck.capture.rebuild import contents

__all__ = ["VisibleKeys", "hidden_by", "hidden_inside", "hiding_in", "visible_keys"]

ASSIGNMENTS: Final = ("__setitem__", "index_put", "index_put_")
"""Functions that get an index, then numbers to write there."""

BESIDE: Final[Mapping[str, How]] = {
    **dict.fromkeys(("add", "radd", "minimum", "fmin", "min"), "added"),
    **dict.fromkeys(("sub", "subtract"), "subtracted"),
}
"""Functions that hide keys by the numbers that scores are combined with."""

REMEMBERED: Final = 4
"""How many merged masks are kept: layers share theirs, a model has one or two of them."""


class VisibleKeys:
    """Merges masks; those that all layers share only once."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[Any, ...], tuple[list[Tensor], Tensor | None]] = (
            OrderedDict()
        )

    def of(self, hidings: Sequence[Hiding], shape: Sequence[int]) -> Tensor | None:
        """See `visible_keys`."""
        if not hidings:
            return None
        held = [contents(hiding.mask) for hiding in hidings]
        if None in held:
            return visible_keys(hidings, shape)
        same = [(hiding.how, mask) for hiding, mask in zip(hidings, held, strict=True)]
        key = (*same, tuple(shape))
        if key not in self._known:
            # The masks are kept with the result: their memory must stay taken.
            self._known[key] = [hiding.mask for hiding in hidings], visible_keys(hidings, shape)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return self._known[key][1]


def hidden_inside(step: Step, weights: Tensor) -> tuple[Hiding, ...]:
    """Return the masks that a kernel applied to scores itself, by the weights that it made 0.

    Args:
        step: A kernel that got scores.
        weights: That it made.
    """
    shape = tuple(step.source.shape)
    found: list[Hiding] = []
    for other in step.others():
        if other.dtype not in (torch.bool, torch.uint8) or not _fits(other, step.source.shape):
            continue
        mask = other.bool()
        if _weighs_nothing(weights, mask):
            found.append(Hiding("hidden", mask, shape, step.trace.axes))
        elif _weighs_nothing(weights, ~mask):
            found.append(Hiding("visible", mask, shape, step.trace.axes))
    return tuple(found)


def hidden_by(
    scores: Tensor, axes: Axes | None, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Hiding, ...]:
    """Return the mask of a `torch._masked_softmax`.

    Args:
        scores: That it got.
        axes: Of the scores.
        args: That it got.
        kwargs: That it got.
    """
    mask = args[1] if len(args) > 1 else kwargs.get("mask")
    kind = args[3] if len(args) > 3 else kwargs.get("mask_type")
    if not isinstance(mask, Tensor):
        return ()
    if kind == 1 and mask.ndim == 2:  # (batch, key); else (query, key), or like the scores
        mask = mask.view(mask.shape[0], *(1,) * (scores.ndim - 2), mask.shape[1])
    return (Hiding("hidden", mask, tuple(scores.shape), axes),)


def _weighs_nothing(weights: Tensor, where: Tensor) -> bool:
    weights, where = numbers_of(weights), numbers_of(where)
    return bool(where.any()) and not bool((weights * where).any())


def visible_keys(hidings: Sequence[Hiding], shape: Sequence[int]) -> Tensor | None:
    """Merge the masks that the model applied, as far as they fit the weights.

    Args:
        hidings: The masks.
        shape: Of the weights.

    Returns:
        Bool of that shape; None: nothing is hidden, or it is not known what.
    """
    shown = [mask for how, mask in map(_shown, hidings) if how]
    if not shown or not all(_fits(mask, shape) for mask in shown):
        return None
    seen = shown[0]
    for mask in shown[1:]:
        seen = seen & mask
    return seen.broadcast_to(*shape)


def _shown(hiding: Hiding) -> tuple[bool, Tensor]:
    """Return whether a mask hides anything, and what it shows."""
    how, mask = hiding.how, hiding.mask
    if how == "added":
        if mask.numel() and float(mask.amin()) > HIDDEN_BELOW:
            return False, mask
        shown = mask > HIDDEN_BELOW
        return not bool(shown.all()), shown
    if how == "subtracted":
        shown = mask < -HIDDEN_BELOW
        return not bool(shown.all()), shown
    return True, mask.bool() if how == "visible" else ~mask.bool()


def _fits(mask: Tensor, shape: Sequence[int]) -> bool:
    sizes = zip(reversed(mask.shape), reversed(shape), strict=False)
    return mask.ndim <= len(shape) and all(own in (1, size) for own, size in sizes)


def hiding_in(
    name: str, source: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any], axes: Axes | None
) -> list[Hiding]:
    """Read the mask out of a call that masks scores.

    Args:
        name: Of the function.
        source: The scores.
        args: That it got.
        kwargs: That it got.
        axes: Of the scores.
    """
    shape = tuple(source.shape)
    return [Hiding(how, mask, shape, axes) for how, mask in _masks(name, source, args, kwargs)]


def _masks(
    name: str, source: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[tuple[How, Tensor]]:
    plain = name.strip("_").removeprefix("i")
    values = (*args, *kwargs.values())
    if plain == "masked_fill" and len(values) > 2 and _is_low(values[2]):
        return [("hidden", values[1])]
    if plain == "where" and len(values) > 2 and isinstance(values[0], Tensor):
        condition, yes, no = values[:3]
        if yes is source and _is_low(no):
            return [("visible", condition)]
        if no is source and _is_low(yes):
            return [("hidden", condition)]
        if condition is source and _is_low(no):  # Tensor.where(condition, other)
            return [("visible", yes)]
    if name in ASSIGNMENTS and values[0] is source and _is_low(values[2]):
        hidden = torch.zeros_like(source, dtype=torch.bool)
        hidden[values[1]] = True
        return [("hidden", hidden)]
    how = BESIDE.get(plain)
    if how is None or (how == "subtracted" and values[0] is not source):
        return []
    others = [value for value in values if isinstance(value, Tensor) and value is not source]
    factor = kwargs.get("alpha", 1)
    return [
        (how, other.detach() if factor == 1 or values[0] is not source else other * factor)
        for other in others
        if other.is_floating_point() and not _is_column(other, how)
    ]


def _is_column(other: Tensor, how: How) -> bool:
    """Whether it only shifts rows, as the largest score of each does."""
    return how == "subtracted" and other.shape[-1:] in ((), (1,))


def _is_low(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and float(value) <= HIDDEN_BELOW
    return isinstance(value, int | float) and value <= HIDDEN_BELOW
