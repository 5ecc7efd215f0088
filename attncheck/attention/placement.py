"""Dtype and device that a caller asks for, checked before anything is made in them."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["device_of", "floating_dtype"]


def floating_dtype(value: Any, name: str = "dtype") -> torch.dtype:
    """Return a dtype that holds shares; None is torch's default.

    Raises:
        TypeError: It is no dtype.
        ValueError: It holds whole numbers, flags or complex numbers.

    Example:
        >>> floating_dtype(torch.int32)
        Traceback (most recent call last):
        ValueError: dtype: torch.int32 holds no fractions; expected one such as torch.float32
    """
    if value is None:
        return torch.get_default_dtype()
    if not isinstance(value, torch.dtype):
        raise TypeError(
            f"{name}: {value!r} is {type(value).__name__}; expected a dtype such as torch.float32"
        )
    if not value.is_floating_point:
        raise ValueError(f"{name}: {value} holds no fractions; expected one such as torch.float32")
    return value


def device_of(value: Any, name: str = "device") -> torch.device:
    """Return a device on which tensors can be made; None is torch's default.

    Raises:
        ValueError: It is no device, or not there.

    Example:
        >>> device_of("cpu")
        device(type='cpu')
    """
    if value is None:
        return torch.get_default_device()
    try:
        device = torch.device(value)
        torch.empty(0, device=device)
    except (TypeError, RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{name}: {value!r} is not there ({reason}); expected a device of this machine, such "
            "as 'cpu', or None"
        ) from None
    return device
