"""Compute beside running code without being seen by it or by anybody who watches it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["quiet"]


@contextmanager
def quiet(device_type: str) -> Iterator[None]:
    """No gradients, no autocast, no function modes; results are ordinary tensors.

    Args:
        device_type: ``"cpu"``, ``"cuda"``, ...: where the computation runs.
    """
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device_type, enabled=False),
        torch._C.DisableTorchFunction(),
    ):
        yield
