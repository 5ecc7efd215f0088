"""Threads that a module starts while it is captured: what it has done there is its own as well."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import Thread, get_ident
from typing import Any, Final, TypeAlias

from attncheck.capture.sharing import Shared

__all__ = ["carried", "carried_on"]

Carry: TypeAlias = Callable[[], AbstractContextManager[object] | None]
"""Asked where something is started; what it returns is entered where that runs."""

_CARRIED: list[tuple[int, Carry]] = []
"""Each with the thread in which it is asked."""

WORKERS: Final = "concurrent.futures.thread"
"""Where threads that outlive what they were started for come from: each call is asked for."""


@contextmanager
def carried(carry: Carry) -> Iterator[None]:
    """Enter a context in every thread, and every call in a pool, that this thread starts.

    Args:
        carry: Is asked for the context; None: nothing is to be entered.
    """
    with _STARTS.needed(), carried_on(carry):
        yield


@contextmanager
def carried_on(carry: Carry) -> Iterator[None]:
    """Do so in a thread in which a context was entered, as long as whoever began it does.

    Such a thread may outlive a capture, and must not keep what that has changed.

    Args:
        carry: See `carried`.
    """
    own = get_ident(), carry
    _CARRIED.append(own)
    try:
        yield
    finally:
        _CARRIED.remove(own)


@contextmanager
def _asked() -> Iterator[None]:
    start: Callable[..., Any] = Thread.start
    submit: Callable[..., Any] = ThreadPoolExecutor.submit

    @functools.wraps(start)
    def starting(self: Thread) -> None:
        target = getattr(self, "_target", None)
        if getattr(target, "__module__", "") != WORKERS:
            self.run = _inside(self.run)  # type: ignore[method-assign]
        start(self)

    @functools.wraps(submit)
    def submitting(self: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        return submit(self, _inside(function), *args, **kwargs)

    Thread.start = starting  # type: ignore[method-assign]
    ThreadPoolExecutor.submit = submitting  # type: ignore[method-assign]
    try:
        yield
    finally:
        Thread.start = start  # type: ignore[method-assign]
        ThreadPoolExecutor.submit = submit  # type: ignore[method-assign]


_STARTS: Final = Shared(_asked)


def _inside(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a call inside what is to be entered in another thread than this one."""
    asked = [carry() for thread, carry in _CARRIED if thread == get_ident()]
    contexts = [context for context in asked if context is not None]
    if not contexts:
        return call

    def inside(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context)
            return call(*args, **kwargs)

    return inside
