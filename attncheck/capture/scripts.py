"""TorchScript: nothing in it can be watched, so it is told who runs it and whether it attends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import torch

from attncheck.capture.sharing import Shared

__all__ = ["scripts_attention", "scripts_called"]

Listener: TypeAlias = Callable[[Any], None]
"""Hears of a scripted function that is called."""

_LISTENERS: list[Listener] = []


@contextmanager
def _heard() -> Iterator[None]:
    """Tell the listeners of every call of a scripted function, whose inside nobody can watch."""
    kind: Any = torch.jit.ScriptFunction
    original = kind.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        for listen in _LISTENERS:
            listen(self)
        return original(self, *args, **kwargs)

    kind.__call__ = call
    try:
        yield
    finally:
        kind.__call__ = original


@contextmanager
def scripts_called(listen: Listener) -> Iterator[None]:
    """Tell of every call of a scripted function, whatever thread makes it.

    Args:
        listen: Is told.
    """
    with _CALLS.needed():
        _LISTENERS.append(listen)
        try:
            yield
        finally:
            _LISTENERS.remove(listen)


_CALLS: Final = Shared(_heard)


def scripts_attention(scripted: Any) -> bool:
    """Whether TorchScript computes attention, by its graph.

    Args:
        scripted: A module or a function.
    """
    graph = str(scripted.inlined_graph)
    if "aten::scaled_dot_product_attention" in graph:
        return True
    return "aten::softmax" in graph and ("aten::matmul" in graph or "aten::bmm" in graph)
