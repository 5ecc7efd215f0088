"""Compute beside running code without being seen by it or by anybody who watches it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

__all__ = ["quiet"]


def quiet(device_type: str) -> AbstractContextManager[None]:
    """No gradients, autocast, function modes or `torch.func`; results are ordinary tensors.

    Args:
        device_type: ``"cpu"``, ``"cuda"``, ...: where the computation runs.
    """
    if torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        return _silenced(device_type)
    if torch.is_autocast_enabled(device_type) or _is_transforming():
        return _silenced(device_type)
    hidden: AbstractContextManager[None] = torch._C.DisableTorchFunction()
    return hidden


@contextmanager
def _silenced(device_type: str) -> Iterator[None]:
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        _without_autocast(device_type),
        torch._C.DisableTorchFunction(),
        _untransformed(),
    ):
        yield


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Turn autocast off where it is on: entering it costs as much as a small product."""
    if not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def _is_transforming() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


def _untransformed() -> AbstractContextManager[Any]:
    """Outside `torch.func.grad` and its like, which wrap whatever is computed inside them."""
    if not _is_transforming():
        return nullcontext()
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    return temporarily_clear_interpreter_stack()
