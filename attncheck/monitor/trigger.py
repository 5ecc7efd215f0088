"""Know when a model runs a forward pass of training, from outside of what it computes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["Trigger"]


class Trigger:
    """Calls two functions around each forward pass in training mode with gradients.

    An ordinary model is watched by hooks, one compiled in place through its compiled call: hooks
    would be compiled with it. Copies and pickles of the model carry a hook that does nothing.

    Args:
        before: Gets ``(args, kwargs)`` of the pass.
        after: Called when it is over; gets whether an exception ended it.
    """

    def __init__(
        self,
        before: Callable[[tuple[Any, ...], Mapping[str, Any]], None],
        after: Callable[[bool], None],
    ) -> None:
        self._before = before
        self._after = after
        self.paused = False
        self._inside = False

    @contextmanager
    def installed(self, model: nn.Module) -> Iterator[None]:
        """Watch until the context ends."""
        compiled = getattr(model, "_compiled_call_impl", None)
        if compiled is not None and not hasattr(model, "_orig_mod"):

            def call(*args: Any, **kwargs: Any) -> Any:
                self.enter(model, args, kwargs)
                broke = True
                try:
                    output = compiled(*args, **kwargs)
                    broke = False
                    return output
                finally:
                    self.leave(broke=broke)

            model._compiled_call_impl = call
            try:
                yield
            finally:
                model._compiled_call_impl = compiled
            return
        hook = _Hook(self)
        handles = (
            model.register_forward_pre_hook(hook.before, with_kwargs=True, prepend=True),
            model.register_forward_hook(hook.after, always_call=True),
        )
        try:
            yield
        finally:
            hook.trigger = None
            for handle in handles:
                handle.remove()

    def enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A call begins; evaluation does not count."""
        if self.paused:
            return
        self._inside = model.training and torch.is_grad_enabled()
        if self._inside:
            self._before(args, kwargs)

    def leave(self, *, broke: bool = False) -> None:
        """A call is over."""
        if self._inside and not self.paused:
            self._inside = False
            self._after(broke)


class _Hook:
    """What stands in the model's hooks; a copy of it does nothing."""

    def __init__(self, trigger: Trigger | None = None) -> None:
        self.trigger = trigger

    def before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.compiler.is_compiling() and self.trigger is not None:
            self.trigger.enter(model, args, kwargs)

    def after(self, _: nn.Module, __: Any, output: Any) -> None:
        if not torch.compiler.is_compiling() and self.trigger is not None:
            # After an exception torch calls this hook while it handles it.
            self.trigger.leave(broke=output is None and sys.exc_info()[0] is not None)

    def __deepcopy__(self, memo: Any) -> _Hook:
        return _Hook()

    def __reduce__(self) -> Any:
        return _Hook, ()
