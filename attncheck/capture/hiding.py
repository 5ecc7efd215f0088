"""The masks that a module puts on its own scores, read out of the functions that it calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from attncheck.attention.masks import HIDDEN_BELOW
from attncheck.capture.traces import Hiding, Trace

__all__ = ["hiding_in", "visible_keys"]


def visible_keys(trace: Trace, weights: Tensor) -> Tensor | None:
    """Merge the masks that the model applied, as far as they fit the weights as they lie."""
    seen: Tensor | None = None
    for how, mask in trace.hiding:
        if how == "added":
            shown = mask > HIDDEN_BELOW
            if bool(shown.all()):
                continue
        else:
            shown = mask.bool() if how == "visible" else ~mask.bool()
        try:
            shown = shown.broadcast_to(weights.shape)
        except RuntimeError:
            return None
        seen = shown if seen is None else seen & shown
    return seen


def hiding_in(
    name: str, source: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Hiding]:
    """Read the mask out of a call that masks scores."""
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
    if plain in ("add", "radd"):
        others = [value for value in values if isinstance(value, Tensor) and value is not source]
        return [("added", other.detach()) for other in others if other.is_floating_point()]
    return []


def _is_low(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and float(value) <= HIDDEN_BELOW
    return isinstance(value, int | float) and value <= HIDDEN_BELOW
