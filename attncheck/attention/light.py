"""Small layers are looked at without waking torch's other threads.

They gain little from several threads, and where other processes hold the cores, as beside
pytest-xdist's workers, each operation waits for all of torch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
from torch import Tensor

from attncheck.attention.maps import AttentionMaps, LayerAttention
from attncheck.compiled import SMALL
from attncheck.compiled.threads import on_one_thread

__all__ = ["is_light", "on_one_thread_if_light", "threads_for"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def on_one_thread_if_light(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a function use one thread if its first argument holds no large layer, see `is_light`.

    Example:
        >>> import torch
        >>> @on_one_thread_if_light
        ... def threads(attention):
        ...     return torch.get_num_threads()
        >>> threads(torch.eye(4))
        1
    """

    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        __tracebackhide__ = True
        attention = args[0] if args else next(iter(kwargs.values()), None)
        with on_one_thread() if is_light(attention) else nullcontext():
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
    if isinstance(attention, Tensor) and attention.is_nested:  # its sizes are no numbers
        return False
    if isinstance(attention, Tensor | LayerAttention):
        return attention.device.type == "cpu" and _few(attention.shape)
    if isinstance(attention, np.ndarray):
        return _few(attention.shape)
    if isinstance(attention, AttentionMaps):
        return all(map(is_light, attention.layers))
    if isinstance(attention, list | tuple):
        return all(map(is_light, attention))
    return False


def threads_for(shape: Iterable[int], device_type: str) -> AbstractContextManager[None]:
    """Let torch use one thread for a layer with few weights, as many as ever for others.

    Args:
        shape: ``(batch, head, query, key)``.
        device_type: Where the layer is; on others than ``"cpu"`` nothing is changed.
    """
    return on_one_thread() if device_type == "cpu" and _few(shape) else nullcontext()


def _few(shape: Iterable[int]) -> bool:
    return math.prod(shape) < SMALL
