"""What a model is called with, as its caller meant it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor, nn

__all__ = ["as_meant"]

CACHES: Final = ("cache", "past", "mems")
"""What names of second parameters hold where a model takes no tensor there."""


def as_meant(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call of the model.

    ``(input_ids, attention_mask)`` by place means that for every model, also for those of
    transformers that take a cache in the second place.

    Args:
        model: That is called.
        args: Given by place.
        kwargs: Given by name.

    Raises:
        TypeError: Inputs that belong to the model's parameters were given as one mapping, or text
            to a model that takes ids.
    """
    if all(isinstance(arg, Tensor) for arg in args[:1]) and len(args) != 2:
        return args, kwargs  # as a rule; a signature takes long to read
    names = _parameters(model)
    if args and isinstance(args[0], str) and names[:1] == ["input_ids"]:
        raise TypeError(f"inputs: got the text {args[0][:20]!r}; tokenise it, and pass **inputs")
    if len(args) == 1 and isinstance(args[0], Mapping) and args[0] and set(args[0]) <= set(names):
        kind, held = type(args[0]).__name__, ", ".join(args[0])
        raise TypeError(f"inputs: got one {kind} of {held}; pass them by name, as **inputs")
    if len(args) == 2 and isinstance(args[1], Tensor) and "attention_mask" not in kwargs:
        second = names[1] if len(names) > 1 else ""
        if any(word in second for word in CACHES) and "attention_mask" in names:
            return args[:1], {**kwargs, "attention_mask": args[1]}
    return args, kwargs


def _parameters(model: nn.Module) -> list[str]:
    """Names of what ``forward`` takes; none where that cannot be read."""
    try:
        return list(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):
        return []
