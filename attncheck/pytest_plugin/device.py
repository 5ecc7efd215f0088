"""From a device that someone asked for to one that is there."""

from __future__ import annotations

import pytest
import torch

__all__ = ["resolve_device"]


def resolve_device(word: str) -> torch.device:
    """Return the device.

    Args:
        word: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ..., or ``"auto"``: the first of CUDA, Apple's
            MPS and Intel's XPU that is there, else the CPU.

    Raises:
        pytest.UsageError: It is not there. An error and no skip: whoever asks for a device by
            name must not get a green run in which nothing ran.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if word == "auto":
        names = ("cuda", "mps", "xpu")
        return next((torch.device(name) for name in names if _count(name)), torch.device("cpu"))
    device = torch.device(word)
    if (device.index or 0) >= _count(device.type):
        there = [name for name in ("cpu", "cuda", "mps", "xpu") if _count(name)]
        raise pytest.UsageError(
            f"--attncheck-device: {word} is not there; this machine has {', '.join(there)}. "
            "Use auto to take what there is"
        )
    return device


def _count(kind: str) -> int:
    """Count the devices of a kind."""
    if kind == "cpu":
        return 1
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = getattr(torch, kind)
    return int(module.device_count()) if module.is_available() else 0
