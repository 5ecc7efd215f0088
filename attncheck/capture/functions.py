"""Attention that goes through torch functions, whichever way they were imported.

One function mode sees every torch function that Python code calls, also early imports
(``from torch.nn.functional import scaled_dot_product_attention``) and ``torch._C._nn``. It hands
those that matter to a watcher by their name and lets all others pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch.overrides import TorchFunctionMode

from attncheck.capture.call import Sink

__all__ = ["FunctionRecorder", "Watcher"]


class Watcher(Protocol):
    """Sees calls of some torch functions and what they returned."""

    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """Names of torch functions, each with what runs in its place; "" stands for all others.

        The replacement is called as ``replacement(function, args, kwargs)``, with all function
        modes off, and returns what ``function(*args, **kwargs)`` returns.
        """
        ...


class FunctionRecorder:
    """Watches torch functions.

    Args:
        watchers: Makes the watchers of one capture, in order of precedence.
    """

    def __init__(self, watchers: Callable[[Sink], list[Watcher]]) -> None:
        self._watchers = watchers

    @contextmanager
    def installed(self, sink: Sink) -> Iterator[None]:
        """Report calls from ``sink``'s model in this thread until the context ends."""
        mode = _Mode(sink, self._watchers(sink))
        torch._C._push_on_torch_function_stack(mode)
        try:
            yield
        finally:
            mode.done = True
            _remove(mode)


class _Mode(TorchFunctionMode):
    """Hands functions to watchers, until it is `done`: another thread cannot take it off."""

    def __init__(self, sink: Sink, watchers: list[Watcher]) -> None:
        super().__init__()
        self.done = False
        self._sink = sink
        self._replacements: dict[str, Callable[..., Any]] = {}
        for watcher in reversed(watchers):
            self._replacements.update(watcher.functions())
        self._any_other = self._replacements.get("", _call)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if self.done or self._sink.busy or torch.compiler.is_compiling():
            return func(*args, **options)
        name = getattr(func, "__name__", "")
        return self._replacements.get(name, self._any_other)(func, args, options)


def _call(function: Any, args: Any, options: Mapping[str, Any]) -> Any:
    return function(*args, **options)


def _remove(mode: TorchFunctionMode) -> None:
    """Take a mode off the stack wherever it is: others may have been entered since."""
    above = []
    while torch._C._len_torch_function_stack():
        top = torch._C._pop_torch_function_stack()
        if top is mode:
            break
        above.append(top)
    for other in reversed(above):
        torch._C._push_on_torch_function_stack(other)
