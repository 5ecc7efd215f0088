"""Attention without matrix products: every query beside every key, one number for each pair.

Additive attention adds them (``v . tanh(query + key)``), others multiply them element by element
and sum. Both begin with two activations that broadcast against each other and share their features.
"""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor

from attncheck.capture.products import is_parameter
from attncheck.capture.traces import Trace

__all__ = ["COMBINATIONS", "lengths_of_pairs", "rows_of_sum", "scores_from_pairs"]

COMBINATIONS: Final = (
    *("add", "__add__", "__radd__", "sub", "__sub__", "subtract"),
    *("mul", "__mul__", "__rmul__", "multiply"),
)
"""Functions that put a query beside a key."""

TO_ONE: Final = ("sum", "mean", "norm", "linalg_vector_norm", "linear", "matmul", "__matmul__")
"""Functions that make one score of the features of a pair."""

NORMS: Final = ("layer_norm", "rms_norm", "group_norm", "batch_norm")
"""Functions that end it: what follows them is a layer of its own."""


def lengths_of_pairs(args: tuple[Any, ...]) -> frozenset[int]:
    """Return the numbers of queries and keys, if two arguments pair activations; else nothing.

    Either both broadcast, ``(..., query, 1, size)`` against ``(..., 1, key, size)``, or one query
    stands beside a sequence, ``(batch, 1, size)`` against ``(batch, key, size)``.

    Args:
        args: Of one of `COMBINATIONS`.
    """
    if len(args) < 2 or not isinstance(args[0], Tensor) or not isinstance(args[1], Tensor):
        return frozenset()
    left, right = args[:2]
    if left.shape == right.shape or left.ndim != right.ndim or left.ndim < 3:
        return frozenset()
    if left.shape[-1] != right.shape[-1] or left.shape[-1] == 1 or not left.is_floating_point():
        return frozenset()
    ones = [(own == 1, other == 1) for own, other in zip(left.shape, right.shape, strict=True)]
    queries = [axis for axis, both in enumerate(ones) if both == (False, True)]
    keys = [axis for axis, both in enumerate(ones) if both == (True, False)]
    alone = left.ndim == 3 and len(queries) + len(keys) == 1 and 0 not in (*queries, *keys)
    if not ((queries and keys) or alone) or is_parameter(left) or is_parameter(right):
        return frozenset()
    return frozenset([left.shape[axis] for axis in queries] + [right.shape[axis] for axis in keys])


def scores_from_pairs(name: str, source: Tensor, out: Any) -> bool | None:
    """Whether a function made scores of pairs; None: they are pairs no longer.

    Args:
        name: Of the function.
        source: The pairs.
        out: What it returned.
    """
    if not isinstance(out, Tensor) or not out.is_floating_point():
        return None
    if name in TO_ONE and out.numel() * source.shape[-1] == source.numel():
        return True
    same = out.numel() == source.numel()
    return False if same and name not in TO_ONE and name not in NORMS else None


def rows_of_sum(trace: Trace, weighted: Tensor, dim: int) -> Tensor | None:
    """Return weights ``(..., query, key)`` that multiplied values element by element.

    None where the sum is not over the keys, or what they multiplied has no features of its own.

    Args:
        trace: Of the product.
        weighted: The product of weights and values, before it is summed.
        dim: What it is summed over.
    """
    rows, value = trace.clean, trace.value
    assert rows is not None
    assert value is not None
    key = dim - weighted.ndim if dim >= 0 else dim
    if rows.ndim < -key or rows.shape[key] != trace.n_key or value.ndim < -key:
        return None
    axes = [axis for axis in range(-rows.ndim, 0) if axis != key]
    features = [axis for axis in axes if rows.shape[axis] == 1 < weighted.shape[axis]]
    if not features or value.shape[key] == 1:
        return None
    shared = [axis for axis in axes if axis < -value.ndim or value.shape[axis] == 1]
    queries = [axis for axis in shared if rows.shape[axis] > 1]
    rows = rows.movedim((*queries, key), tuple(range(-len(queries) - 1, 0)))
    order = [axis for axis in axes if axis not in queries]
    place = order.index(features[-1])
    rows = rows.squeeze(place)
    return rows if queries else rows.unsqueeze(-2)
