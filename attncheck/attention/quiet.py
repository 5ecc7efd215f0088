"""Compute beside running code without being seen by it or by anybody who watches it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

__all__ = ["quiet"]


@contextmanager
def quiet(device_type: str) -> Iterator[None]:
    """No gradients, autocast, function modes or `torch.func`; results are ordinary tensors.

    Args:
        device_type: ``"cpu"``, ``"cuda"``, ...: where the computation runs.
    """
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device_type, enabled=False),
        torch._C.DisableTorchFunction(),
        _untransformed(),
    ):
        yield


def _untransformed() -> AbstractContextManager[Any]:
    """Outside `torch.func.grad` and its like, which wrap whatever is computed inside them."""
    if torch._C._functorch.peek_interpreter_stack() is None:
        return nullcontext()
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    return temporarily_clear_interpreter_stack()
