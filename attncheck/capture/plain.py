"""Tensors that hold numbers: what a capture needs, and what it says of those that do not."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Final

from torch import Tensor
from torch._C import _functorch

from attncheck.capture.call import AttentionCall

__all__ = ["UnreadableError", "as_plain", "numbers_of", "require_numbers"]

BATCHED: Final = (
    "it runs under torch.vmap, where a tensor stands for many",
    "Call the model on a batch, or capture one element in a loop, without vmap",
)
EMPTY: Final = (
    "its tensors are on the meta device or fake, and hold no numbers",
    "Give the model its weights (model.to_empty and load_state_dict, or outside FakeTensorMode)",
)


class UnreadableError(Exception):
    """Attention that cannot be captured.

    Args:
        what: Why.
        way_out: What to do.
    """

    def __init__(self, what: str, way_out: str) -> None:
        super().__init__(what)
        self.way_out = way_out


def require_numbers(tensor: Tensor) -> Tensor:
    """Return the tensor behind wrappers of `torch.func`.

    Raises:
        UnreadableError: It stands for many, or holds no numbers.
    """
    wrapped = tensor
    while _functorch.is_functorch_wrapped_tensor(wrapped):
        if _functorch.is_batchedtensor(wrapped):
            raise UnreadableError(*BATCHED)
        wrapped = _functorch.get_unwrapped(wrapped)
    return numbers_of(wrapped)


def numbers_of(tensor: Tensor) -> Tensor:
    """Return the tensor behind wrappers of `torch.func`; the first one of those it stands for.

    Raises:
        UnreadableError: It holds no numbers.
    """
    while _functorch.is_functorch_wrapped_tensor(tensor):
        batched = _functorch.is_batchedtensor(tensor)
        axis = _functorch.maybe_get_bdim(tensor) if batched else None
        tensor = _functorch.get_unwrapped(tensor)
        if axis is not None:
            tensor = tensor.select(axis, 0)
    if tensor.is_meta or hasattr(tensor, "fake_mode"):
        raise UnreadableError(*EMPTY)
    return tensor


def as_plain(call: AttentionCall) -> AttentionCall:
    """Return a call with all of its tensors as `require_numbers` gives them."""
    untransformed = _functorch.peek_interpreter_stack() is None
    if untransformed and not any(_holds_none(t) for t in (call.output, call.query, call.weights)):
        return call
    changed: dict[str, Any] = {}
    for field in fields(call):
        held = getattr(call, field.name)
        if isinstance(held, Tensor):
            plain = require_numbers(held)
            if plain is not held:
                changed[field.name] = plain
    return replace(call, **changed) if changed else call


def _holds_none(tensor: Tensor | None) -> bool:
    """Whether it holds no plain numbers: on the meta device, fake, or wrapped by `torch.func`."""
    if tensor is None:
        return False
    wrapped = bool(_functorch.is_functorch_wrapped_tensor(tensor))
    return wrapped or tensor.is_meta or hasattr(tensor, "fake_mode")
