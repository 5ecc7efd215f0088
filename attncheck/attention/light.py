"""`on_one_thread_if_light`: small maps are looked at without waking torch's other threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
from torch import Tensor

from attncheck.attention.maps import AttentionMaps, LayerAttention
from attncheck.compiled import SMALL
from attncheck.compiled.threads import on_one_thread

__all__ = ["is_light", "on_one_thread_if_light"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def on_one_thread_if_light(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a function use one thread if its first argument holds no large layer, see `is_light`.

    A small layer gains little from several threads, and where other processes hold the cores, as
    beside pytest-xdist's workers, each operation waits for all of torch's.
    """

    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        __tracebackhide__ = True
        attention = args[0] if args else next(iter(kwargs.values()), None)
        if not is_light(attention):
            return function(*args, **kwargs)
        with on_one_thread():
            return function(*args, **kwargs)

    return call


def is_light(attention: Any) -> bool:
    """Whether attention, in any form, holds layers on the CPU with few weights each.

    Args:
        attention: Weights as `as_attention` takes them; of what it would have to look into, False.

    Example:
        >>> import torch
        >>> is_light(torch.eye(4)), is_light([np.eye(4), np.zeros((8, 512, 512))])
        (True, False)
    """
    if isinstance(attention, Tensor | LayerAttention):
        return attention.device.type == "cpu" and _few(attention.shape)
    if isinstance(attention, np.ndarray):
        return _few(attention.shape)
    if isinstance(attention, AttentionMaps):
        return all(map(is_light, attention.layers))
    if isinstance(attention, list | tuple):
        return all(map(is_light, attention))
    return False


def _few(shape: Iterable[int]) -> bool:
    return math.prod(shape) < SMALL
