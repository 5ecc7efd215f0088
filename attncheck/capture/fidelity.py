"""A capture proves itself: weights @ value must be what the layer really returned.

A recomputed softmax sums to 1 by construction, so its rows prove nothing. A few query rows of
``weights @ value`` against the backend's own output do: they see the scale, the mask, the head
grouping and the alignment.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from attncheck.capture.call import AttentionCall
from attncheck.capture.quiet import undrawn
from attncheck.capture.rebuild import of_query_heads
from attncheck.capture.select import Chosen
from attncheck.tolerances import tolerance_for

__all__ = ["compared_rows", "unfaithful"]

ROWS = 8
"""Query rows compared in each call: first, last, and evenly between."""

ROUNDINGS = 4
"""How many roundings of a score's size the scores of two correct kernels may lie apart."""


def unfaithful(
    call: AttentionCall, weights: Tensor, rows: Tensor, heads: Chosen, seen: Tensor | None
) -> str | None:
    """Compare a block of rows with the backend's output; None if they agree.

    The error is taken relative to the largest value, because an output is a mean of values. It
    may be ``atol + rtol`` of the output's dtype, plus `ROUNDINGS` float32 roundings of the largest
    possible score where the scores were computed anew.

    Args:
        call: What the backend got and returned.
        weights: ``(batch, head, row, key)`` of the selected heads in the rows compared.
        rows: Which queries those are, see `compared_rows`.
        heads: The selected heads.
        seen: Bool, broadcastable to ``(batch, head, query)``: rows that see any key; others may
            hold anything.
    """
    output = call.output
    if call.dropout and call.without_dropout is not None:
        with undrawn(output.device):
            output = call.without_dropout()
    if call.redone is not None:
        return _verdict(_largest(call.redone, output), output, call, rebuilt_scores=False)
    if call.value is None or (call.dropout and call.without_dropout is None):
        return None
    dtype = torch.promote_types(call.value.dtype, torch.float32)
    rebuilt, value = _of_values(weights.to(dtype), call.value.detach().to(dtype), heads, call)
    # No mean of values is larger than the largest: what passes by the one passes by the other.
    allowed = _allowed(call, rebuilt)
    returned = heads.of(output.detach().index_select(2, rows), 1).to(dtype)
    if seen is not None:
        hidden = ~seen.expand(*seen.shape[:2], call.shape[2]).index_select(2, rows)
        rebuilt = torch.where(hidden[..., None], returned, rebuilt)
    error = _largest(rebuilt, returned)
    if error <= allowed:
        return None
    return _verdict(error, value, call, rebuilt_scores=call.weights is None)


def _of_values(
    weights: Tensor, value: Tensor, heads: Chosen, call: AttentionCall
) -> tuple[Tensor, Tensor]:
    """Multiply weights and value; return the product, and the value as it was multiplied."""
    batch, n_heads, n_rows, n_key = weights.shape
    shared = value.shape[1]
    regular = shared and n_heads % shared == 0 and value.shape[0] == batch
    if heads.index is not None or not regular:
        value = of_query_heads(value, heads, call.shape[1])
        return torch.matmul(weights, value), value
    # Rows of all query heads that share a value below each other: no value is repeated.
    grouped = weights.reshape(batch * shared, n_heads // shared * n_rows, n_key)
    product = torch.bmm(grouped, value.reshape(batch * shared, *value.shape[2:]))
    return product.view(batch, n_heads, n_rows, value.shape[3]), value


@functools.lru_cache(maxsize=64)
def compared_rows(n_query: int, device: torch.device) -> Tensor:
    """Return which queries of a call are compared, int64: first, last, and evenly between."""
    count = min(n_query, ROWS)
    return torch.linspace(0, n_query - 1, count, device=device).long()


def _largest(rebuilt: Tensor, returned: Tensor) -> float:
    """Largest absolute error; NaN on both sides agrees, NaN on one side is infinitely wrong."""
    if not rebuilt.numel():
        return 0.0
    error = rebuilt - returned
    largest = _size(error)
    if not math.isnan(largest):
        return largest
    error = error.abs_().nan_to_num_(nan=math.inf)
    return float(error.masked_fill_(rebuilt.isnan() & returned.isnan(), 0).amax())


def _size(tensor: Tensor) -> float:
    """Largest absolute number, NaN if there is one."""
    low, high = tensor.aminmax()  # a third of what abs and amax take
    return max(-float(low), float(high))


def _score_rounding(call: AttentionCall) -> float:
    """Largest score that query and key could make, times what rounding may do to it."""
    assert call.query is not None
    assert call.key is not None
    size = call.query.shape[-1]
    scale = 1 / math.sqrt(size) if call.scale is None else abs(call.scale)
    longest = _longest(call.query) * _longest(call.key)
    return longest * scale * ROUNDINGS * torch.finfo(torch.float32).eps


def _longest(vectors: Tensor) -> float:
    return float(vectors.float().norm(dim=-1).nan_to_num_(0, posinf=0).amax())


def _allowed(call: AttentionCall, reference: Tensor) -> float:
    """Error that rounding may cause, by the largest finite number of a reference."""
    if not reference.numel():
        return 0.0
    largest = _size(reference)
    if not math.isfinite(largest):
        largest = _size(reference.nan_to_num(0))
    return tolerance_for(call.output.dtype).row_sum * largest


def _verdict(
    error: float, reference: Tensor, call: AttentionCall, *, rebuilt_scores: bool
) -> str | None:
    allowed = _allowed(call, reference)
    if error > allowed and rebuilt_scores:
        allowed *= 1 + _score_rounding(call) / tolerance_for(call.output.dtype).row_sum
    if error <= allowed:
        return None
    return (
        f"weights @ value differs from the output of {call.backend} by {error:.2e}, "
        f"allowed {allowed:.2e}"
    )
