"""Kernels of somebody: functions that torch does not bring, and that no function mode looks into.

An `autograd.Function` and TorchScript pass by a function mode altogether, so calls of them are
shown to it. An operator under ``torch.ops`` does not, but what it computes is nobody's business but
its own. What they make of scores is told by its numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import torch
from torch._ops import OpOverload, OpOverloadPacket

from attncheck.capture.recorders.apply import apply_shown, as_torch_applies
from attncheck.capture.sharing import Shared

__all__ = [
    "FOREIGN",
    "KERNELS",
    "OPERATORS",
    "Kernel",
    "identity_of",
    "is_foreign",
    "scripts_called",
]

OPERATORS: Final = (OpOverload, OpOverloadPacket)
"""What functions under ``torch.ops`` are."""

NAMESPACES: Final = frozenset({"aten", "prim", "prims", "profiler", "inductor", "quantized"})
"""Those of torch's own operators."""

FOREIGN: Final = "::"
"""Name under which all of these go to watchers."""

SCRIPTED: Final[tuple[Any, ...]] = (torch.jit.ScriptFunction, torch._C.ScriptMethod)
"""Functions and methods in TorchScript."""

Listener: TypeAlias = Callable[[Any], None]
"""Hears of a scripted function that is called."""

_LISTENERS: list[Listener] = []


class Kernel:
    """An `autograd.Function`, or TorchScript, that passes for a torch function.

    Args:
        name: Of it.
        identity: Tells it from others of this name.
        call: Calls it.
        scripted: It is TorchScript.
    """

    def __init__(
        self, name: str, identity: object, call: Callable[..., Any], scripted: bool
    ) -> None:
        self.__name__, self.identity, self.scripted = name, identity, scripted
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        return self._call(*args, **kwargs)


def is_foreign(operator: Any) -> bool:
    """Whether one of `OPERATORS` is not torch's own."""
    return _full_name(operator).partition("::")[0] not in NAMESPACES


def identity_of(kernel: Any) -> object:
    """Return what tells a kernel from others, also from those of its name.

    Args:
        kernel: A `Kernel`, or one of `OPERATORS`.
    """
    return _full_name(kernel) if type(kernel) in OPERATORS else kernel.identity


def _full_name(operator: Any) -> str:
    held = operator._qualified_op_name if type(operator) is OpOverloadPacket else operator.name()
    return str(held)


@contextmanager
def scripts_called(listen: Listener) -> Iterator[None]:
    """Tell of every call of a scripted function or method, whatever thread makes it.

    Args:
        listen: Is told.
    """
    with KERNELS.needed():
        _LISTENERS.append(listen)
        try:
            yield
        finally:
            _LISTENERS.remove(listen)


def applied(cls: type, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Show a call of an `autograd.Function`.

    Args:
        cls: Of it.
        args: For it.
        kwargs: For it.
    """
    return _show(cls.__name__, cls, functools.partial(as_torch_applies, cls), args, kwargs)


@contextmanager
def _shown() -> Iterator[None]:
    """Show calls of kernels to this thread's innermost function mode, if it has ``kernel``."""
    scripted = {kind: kind.__call__ for kind in SCRIPTED}
    for kind, call in scripted.items():
        kind.__call__ = _showing(call)
    try:
        with apply_shown(applied):
            yield
    finally:
        for kind, call in scripted.items():
            kind.__call__ = call


KERNELS: Final = Shared(_shown)


def _showing(original: Any) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        for listen in _LISTENERS:
            listen(self)
        call = functools.partial(original, self)
        return _show(self.name, self.name, call, args, kwargs, scripted=True)

    return call


def _show(
    name: str,
    identity: object,
    call: Callable[..., Any],
    args: Any,
    kwargs: Mapping[str, Any],
    scripted: bool = False,
) -> Any:
    """Make a call that every recorder among this thread's function modes watches, innermost first.

    Other modes, as ``with torch.device(...)`` is one, may lie above and between them.
    """
    for number in range(torch._C._len_torch_function_stack()):
        kernel = getattr(torch._C._get_function_stack_at(number), "kernel", None)
        if kernel is not None:
            call = functools.partial(_watched, kernel, Kernel(name, identity, call, scripted))
    return call(*args, **kwargs)


def _watched(kernel: Callable[..., Any], function: Kernel, *args: Any, **kwargs: Any) -> Any:
    return kernel(function, args, kwargs)
