"""Tell whether a kernel computes attention as a whole: by one row of what it returned.

Where that row is another, because keys are hidden from it or positions are rotated in the kernel,
the kernel's name may still say so, if all that it returned lies between its values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from attncheck.capture.follow.origins import tensors_in
from attncheck.capture.plain import numbers_of

__all__ = ["attends", "floats_in"]

NAMED: Final = re.compile(r"attention|attn|sdpa|(^|_)mha(_|$)|flash_(fwd|forward)")
BESIDE: Final = frozenset(
    {"norm", "gate", "rotary", "dropout", "add", "residual", "scale", "bias", "embed", "mask"}
    | {"linear", "ln", "epilogue"}
)
"""What kernels of attention are called, and words in the names of those beside them."""

WORDS: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|_+")
"""Where one word of a name ends and the next begins."""

SLACK: Final = 0.05
"""How far beyond the values a result may lie, as a share of the largest: some kernels round."""


def attends(name: str, given: Sequence[Any], returned: Any) -> bool | None:
    """Whether a kernel has the shapes of attention, and a row of its result, or its name, as well.

    The row is that of the last query, which sees all keys under a causal mask too.

    Args:
        name: Of the kernel, without its library's.
        given: Its arguments.
        returned: What it returned; where that is nothing, it wrote into an argument.

    Returns:
        None: with these numbers nothing tells, as where all values are alike.
    """
    tensors = [numbers_of(tensor) for tensor in floats_in(given)]
    results = [numbers_of(tensor) for tensor in floats_in((returned,))] or tensors[3:]
    scales = [arg for arg in given if isinstance(arg, float)]
    named = _is_named(name)
    told: bool | None = False
    with torch.no_grad(), torch._C.DisableTorchFunction():
        for result in results:
            if len(tensors) == 2 and _are_weights(tensors[0], tensors[1], result, scales):
                return True
            for q, k, v in _parts(tensors):
                for arranged in _arranged(q, k, v, result):
                    same = _is_last_row(arranged, scales)
                    if same or (named and _lies_between(arranged)):
                        return True
                    told = None if same is None else told
    return told


def _is_named(name: str) -> bool:
    words = [word.lower() for word in WORDS.split(name)]
    return bool(NAMED.search("_".join(words))) and BESIDE.isdisjoint(words)


def floats_in(values: Any) -> list[Tensor]:
    """List the floating tensors among some values, also those in lists."""
    return [tensor for tensor in tensors_in(values) if tensor.is_floating_point()]


def _parts(tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield query, key and value: the first three, or what one or two tensors hold of them."""
    if len(tensors) >= 3:
        yield tensors[0], tensors[1], tensors[2]
    elif len(tensors) == 2 and tensors[1].ndim == tensors[0].ndim + 1:
        for axis, size in enumerate(tensors[1].shape):
            if size == 2:
                k, v = tensors[1].unbind(axis)
                yield tensors[0], k, v
    elif len(tensors) == 1:
        packed = tensors[0]
        for axis in range(packed.ndim):
            if packed.shape[axis] == 3:
                q, k, v = packed.unbind(axis)
                yield q, k, v


def _arranged(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> Iterator[Sequence[Tensor]]:
    """Yield the four as ``(..., length, size)``, in each layout in which their shapes fit."""
    held = (q, k, v, out)
    if not 1 < q.ndim == k.ndim == v.ndim == out.ndim or not all(t.numel() for t in held):
        return
    if k.shape[0] != q.shape[0] and q.ndim > 2:
        return
    for tensors in (held, tuple(t.transpose(1, 2) for t in held) if q.ndim == 4 else held):
        query, key, value, result = tensors
        fits = query.shape[-1] == key.shape[-1] and key.shape[:-1] == value.shape[:-1]
        if fits and result.shape == (*query.shape[:-1], value.shape[-1]):
            yield tensors


def _lies_between(arranged: Sequence[Tensor]) -> bool:
    """Whether a result may be means of values, some of them with a share of nothing at all."""
    value, out = (tensor.detach().flatten(0, -2).double() for tensor in arranged[2:])
    low, high = value.amin(0).clamp(max=0), value.amax(0).clamp(min=0)
    slack = SLACK * value.abs().max()
    return not bool(((out < low - slack) | (out > high + slack)).any())


def _is_last_row(arranged: Sequence[Tensor], scales: Sequence[float]) -> bool | None:
    q, k, v, out = arranged
    first = (0,) * (q.ndim - 2)
    query, key, value = (tensor[first].double() for tensor in (q, k, v))
    if len(key) < 2:
        return False
    result = out[first][-1].double()
    if not bool((value != value[0]).any()) or not bool(result.any()) or bool(result.isnan().any()):
        return None
    rows = (row @ value for row in _rows(query[-1], key, scales))
    return any(bool(row.abs().max() > 0) and _near(row, result, out.dtype) for row in rows)


def _are_weights(q: Tensor, k: Tensor, out: Tensor, scales: Sequence[float]) -> bool:
    """Whether two tensors gave the weights of one for the other."""
    if q.ndim != k.ndim or q.ndim < 2 or q.shape[-1] != k.shape[-1] or not out.numel():
        return False
    if out.shape != (*q.shape[:-1], k.shape[-2]) or k.shape[-2] < 2 or k.shape[:-2] != q.shape[:-2]:
        return False
    first = (0,) * (q.ndim - 2)
    rows = _rows(q[first][-1].double(), k[first].double(), scales)
    return any(_near(row, out[first][-1].double(), out.dtype) for row in rows)


def _rows(query: Tensor, key: Tensor, scales: Sequence[float]) -> Iterator[Tensor]:
    scores = key @ query
    for scale in (query.shape[-1] ** -0.5, 1.0, *scales):
        yield (scores * scale).softmax(-1)


def _near(expected: Tensor, found: Tensor, dtype: torch.dtype) -> bool:
    most = max(8 * torch.finfo(dtype).eps, 1e-5) * expected.abs().max()
    return bool((expected - found).abs().max() <= most)
