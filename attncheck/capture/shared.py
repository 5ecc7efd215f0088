"""What a capture changes for a while, where several captures may want it at once.

Captures nest, overlap, and run in several threads. The first one makes the change, the last one
undoes it; in between, nobody puts back what another still needs.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from threading import get_ident
from typing import Any, Final, TypeAlias

import torch
from torch import nn

from attncheck.capture.modules import ModuleTable
from attncheck.capture.recorders.functions import is_plain, rested
from attncheck.capture.sharing import Shared

__all__ = ["called", "evaluating", "uncompiled"]

COMPILERS: Final = ("torch._dynamo", "torch.nn.attention.flex_attention")
"""Modules of torch without which nothing is compiled; flex attention compiles by itself."""


Listener: TypeAlias = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]
"""Hears of a module that is called, with its arguments."""

_LISTENERS: list[tuple[int, frozenset[int], Listener]] = []
"""Each with its thread, and the ids of the modules of which it hears there."""
_AWAITED: dict[int, tuple[Callable[[], None], ...]] = {}
"""By id of a module: whom to tell that a call of it has returned."""


@contextmanager
def _heard() -> Iterator[None]:
    """Tell the listeners of every call of a module.

    Not by hooks: one on a module would go into every copy of it that is made meanwhile, and hooks
    of all modules cost five times as much and make compiled ones warn.
    """
    original: Callable[..., Any] = nn.Module._call_impl

    @functools.wraps(original)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for thread, own, listen in _LISTENERS:
            if id(self) in own or get_ident() != thread:
                listen(self, args, kwargs)
        if is_plain(type(self)):
            returned = rested(self, original, self, *args, **kwargs)
        else:
            returned = original(self, *args, **kwargs)
        if id(self) in _AWAITED:
            for ended in _AWAITED[id(self)]:
                ended()
        return returned

    nn.Module._call_impl = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module._call_impl = original  # type: ignore[method-assign]


_CALLS: Final = Shared(_heard)
_EAGER: Final = Shared(lambda: torch.compiler.set_stance("force_eager"))
_MODES: Final[dict[int, tuple[int, nn.Module, bool]]] = {}
"""By id: how many captures evaluate a module, the module, and whether it was training."""
_LOCK: Final = threading.Lock()


@contextmanager
def called(
    modules: Iterable[nn.Module], listen: Listener, root: nn.Module, returned: Callable[[], None]
) -> Iterator[None]:
    """Tell of every call of some modules, and of any module that another thread calls.

    Args:
        modules: Those among them that do not go the common way, since they were compiled in place
            or have a way of their own, get a hook.
        listen: Is told.
        root: One of the modules.
        returned: Is told when a call of the root has returned, and did not raise.
    """
    with ExitStack() as stack:
        stack.enter_context(_CALLS.needed())
        common = nn.Module._call_impl
        modules = list(modules)
        for module in modules:
            if type(module)._call_impl is not common or module._compiled_call_impl is not None:
                handle = module.register_forward_pre_hook(listen, with_kwargs=True)
                stack.callback(handle.remove)
                if module is root:
                    after = root.register_forward_hook(lambda *_: returned())
                    stack.callback(after.remove)
        _AWAITED[id(root)] = (*_AWAITED.get(id(root), ()), returned)
        stack.callback(_forget, root, returned)
        listener = get_ident(), frozenset(map(id, modules)), listen
        _LISTENERS.append(listener)
        stack.callback(_LISTENERS.remove, listener)
        yield


def _forget(root: nn.Module, returned: Callable[[], None]) -> None:
    left = [ended for ended in _AWAITED.pop(id(root)) if ended != returned]
    if left:
        _AWAITED[id(root)] = tuple(left)


def uncompiled() -> AbstractContextManager[None]:
    """Run compiled code eagerly; without TorchDynamo in the process there is none."""
    if not any(module in sys.modules for module in COMPILERS):
        return nullcontext()
    return _EAGER.needed()


@contextmanager
def evaluating(model: nn.Module, listed: ModuleTable | None = None) -> Iterator[None]:
    """Eval mode and no gradients; afterwards every submodule is in the mode it was in.

    Args:
        model: To evaluate.
        listed: Its modules, where they are listed already.
    """
    modules = (listed or ModuleTable.of(model)).modules
    with _LOCK:
        if not _MODES and not any(module.training for module in modules):
            modules = ()  # nothing to change, and nobody else to wait for
        for module in modules:
            users, _, mode = _MODES.get(id(module), (0, module, module.training))
            _MODES[id(module)] = users + 1, module, mode
        if modules:
            model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        with _LOCK:
            for module in modules:
                users, _, mode = _MODES.pop(id(module))
                if users > 1:
                    _MODES[id(module)] = users - 1, module, mode
                else:
                    module.training = mode
