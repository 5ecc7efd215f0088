"""Tell whether a kernel that gets query, key and value computes attention: by one of its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor

__all__ = ["attends"]

NAMES: Final = ("attn", "attention", "sdpa", "flash", "mha")
"""What kernels of attention are called."""


def attends(name: str, args: Sequence[Any], out: Any) -> bool:
    """Whether a kernel has the shapes of attention, and its name or a row of its result as well.

    The row is that of the last query, which sees all keys under a causal mask too.

    Args:
        name: Of the kernel.
        args: That it got.
        out: What it returned.
    """
    result = out[0] if isinstance(out, tuple | list) and out else out
    tensors = [arg for arg in args if isinstance(arg, Tensor) and arg.is_floating_point()][:3]
    if len(tensors) < 3 or not isinstance(result, Tensor) or result.ndim < 2:
        return False
    q, k, v = tensors
    fitting = list(_arranged(q, k, v, result))
    if any(part in name.lower() for part in NAMES):
        return bool(fitting)
    scales = [arg for arg in args if isinstance(arg, float)]
    with torch.no_grad(), torch._C.DisableTorchFunction():
        return any(_is_last_row(arranged, scales) for arranged in fitting)


def _arranged(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> Iterator[Sequence[Tensor]]:
    """Yield the four as ``(..., length, size)``, in each layout in which their shapes fit."""
    if not q.ndim == k.ndim == v.ndim == out.ndim:
        return
    held = (q, k, v, out)
    for tensors in (held, tuple(t.transpose(1, 2) for t in held) if q.ndim == 4 else held):
        query, key, value, result = tensors
        fits = query.shape[-1] == key.shape[-1] and key.shape[:-1] == value.shape[:-1]
        if fits and result.shape == (*query.shape[:-1], value.shape[-1]) and result.numel():
            yield tensors


def _is_last_row(arranged: Sequence[Tensor], scales: Sequence[float]) -> bool:
    q, k, v, out = arranged
    first = (0,) * (q.ndim - 2)
    query, key, value = (tensor[first].double() for tensor in (q, k, v))
    scores, result = key @ query[-1], out[first][-1].double()
    close = 100 * torch.finfo(out.dtype).eps
    for scale in (query.shape[-1] ** -0.5, 1.0, *scales):
        row = (scores * scale).softmax(-1) @ value
        if bool((row - result).abs().max() <= close * value.abs().max()):
            return True
    return False
