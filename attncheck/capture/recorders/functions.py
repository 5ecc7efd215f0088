"""Attention that goes through torch functions, whichever way they were imported.

One function mode sees every torch function that Python code calls, also early imports
(``from torch.nn.functional import scaled_dot_product_attention``) and ``torch._C._nn``. It hands
those that matter to a watcher by their name and lets all others pass. A mode costs microseconds for
every function, so it rests where it would let all of them pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attncheck.capture.call import Sink
from attncheck.capture.recorders.kernels import FOREIGN, KERNELS, OPERATORS, Kernel, is_foreign
from attncheck.capture.recorders.threads import carried, carried_on
from attncheck.capture.whereabouts import is_running

__all__ = ["FunctionRecorder", "Watcher", "is_plain", "rested"]

PLAIN: Final = frozenset(
    {
        *(nn.Linear, nn.Embedding, nn.Identity, nn.Dropout, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm),
        *(nn.GELU, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.LeakyReLU),
        *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
        *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    }
)
"""Classes that call none of the functions watched, unless there are tensors to follow."""


ONLY_TENSORS: Final = (Tensor,)
"""What functions written in Python, and attributes, say of arguments of no class of their own."""


def is_plain(kind: type[nn.Module]) -> bool:
    """Whether a class is one of these, or what transformers has in their place."""
    return kind in PLAIN or _is_double(kind.__module__, kind.__name__)


@functools.lru_cache(maxsize=4096)
def _is_double(place: str, name: str) -> bool:
    """Whether a class of transformers is a linear map, an activation or a norm, and no more."""
    if place.startswith("transformers.models."):
        return name.endswith("RMSNorm")
    return place == "transformers.activations" or (
        place == "transformers.pytorch_utils" and name == "Conv1D"
    )


class Watcher(Protocol):
    """Sees calls of some torch functions and what they returned."""

    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """Names of torch functions, each with what runs in its place.

        "" stands for all others, `FOREIGN` for kernels of somebody's, whatever their names.

        The replacement is called as ``replacement(function, args, kwargs)``, with all function
        modes off, and returns what ``function(*args, **kwargs)`` returns.
        """
        ...

    def follows(self, first: Tensor | None = None, /) -> bool:
        """Whether it needs to see all other functions now; a quick look.

        Args:
            first: Of these only the functions that get this tensor first.
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
        with KERNELS.needed(), carried(functools.partial(_carried, sink, mode)):
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
        follower = watchers[-1]
        for watcher in reversed(watchers):
            functions = watcher.functions()
            self._replacements.update(functions)
            if "" in functions:
                follower = watcher
        self._any_other: Callable[..., Any] = self._replacements.pop("", _call)
        self._follows = follower.follows

    def rests(self, module: nn.Module) -> bool:
        """Whether it would let pass every function of a module."""
        if not is_plain(type(module)) or module._forward_hooks or module._forward_pre_hooks:
            return False
        return "forward" not in vars(module) and not self._follows()

    @property
    def silent(self) -> bool:
        """Whether it lets all functions pass."""
        return self.done or self._sink.busy

    def kernel(self, function: Kernel, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Watch a kernel, in which torch functions are watched as well if it is in Python."""
        if self.silent or torch.compiler.is_compiling():
            return function(*args, **kwargs)
        replacement: Callable[..., Any] = self._replacements.get(FOREIGN, _call)
        return replacement(function, args, kwargs)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        name = getattr(func, "__name__", "")
        if type(func) in OPERATORS:
            name = FOREIGN if is_foreign(func) else name.partition(".")[0]
        replacement = self._replacements.get(name)
        if replacement is None:
            # Most functions of a model leave here; what they cost adds up.
            known = not types or types == ONLY_TENSORS
            plain = known and args and type(args[0]) is Tensor and not self._follows(args[0])
            if plain and "out" not in options:
                return func(*args, **options)
            replacement = self._any_other
        if self.done or self._sink.busy or torch.compiler.is_compiling():
            return func(*args, **options)
        if types and any(not issubclass(kind, torch.Tensor) for kind in types):
            return self._unwrapping(func, types, args, options)
        return replacement(func, args, options)

    def _unwrapping(self, func: Any, types: Any, args: Any, options: Mapping[str, Any]) -> Any:
        """Let a class that only holds tensors call the function with them, and watch that."""
        for kind in types:
            if not issubclass(kind, torch.Tensor):
                dispatch: Callable[..., Any] = kind.__torch_function__
                with self:
                    returned = dispatch(func, types, args, options)
                if returned is not NotImplemented:
                    return returned
        return func(*args, **options)


class _Elsewhere(TorchFunctionMode):
    """Watches functions in a thread that a module started, unless the model is called there.

    Args:
        mode: Of the thread that captures.
        root: The model.
    """

    def __init__(self, mode: _Mode, root: nn.Module) -> None:
        super().__init__()
        self._mode, self._root = mode, root

    @property
    def silent(self) -> bool:
        """Whether it lets all functions pass."""
        return self._mode.done or is_running(self._root)

    def kernel(self, function: Kernel, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """See `_Mode`."""
        if self.silent:
            return function(*args, **kwargs)
        return self._mode.kernel(function, args, kwargs)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if self.silent:
            return func(*args, **(kwargs or {}))
        return self._mode.__torch_function__(func, types, args, kwargs)


def _carried(sink: Sink, mode: _Mode) -> AbstractContextManager[None] | None:
    """Return what watches a thread that a module is about to start; None: no module does."""
    place = sink.here()
    return None if place is None or mode.silent else _watching(sink, mode, place)


@contextmanager
def _watching(sink: Sink, mode: _Mode, place: tuple[nn.Module, str]) -> Iterator[None]:
    elsewhere = _Elsewhere(mode, sink.modules.modules[0])
    with sink.elsewhere(place), carried_on(functools.partial(_carried, sink, mode)):
        torch._C._push_on_torch_function_stack(elsewhere)
        try:
            yield
        finally:
            _remove(elsewhere)


def rested(module: nn.Module | None, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Make a call with this thread's innermost recorder taken off, if it would see nothing in it.

    Args:
        module: Whose call it is; None: a function that a recorder reports itself.
        call: What to call.
        args: For the call.
        kwargs: For the call.
    """
    count = torch._C._len_torch_function_stack()
    mode = torch._C._get_function_stack_at(count - 1) if count else None
    if type(mode) is not _Mode or not (mode.silent if module is None else mode.rests(module)):
        return call(*args, **kwargs)
    torch._C._pop_torch_function_stack()
    try:
        return call(*args, **kwargs)
    finally:
        torch._C._push_on_torch_function_stack(mode)


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
