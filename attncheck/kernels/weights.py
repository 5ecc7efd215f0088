"""Row measures of weights that are given, each of which is read once."""

from __future__ import annotations

import triton
import triton.language as tl

from attncheck.kernels.tiles import LN2

__all__ = ["NUMBERS", "measure_rows"]

NUMBERS = 7
"""What is written of each row."""

TINY = tl.constexpr(1.1754943508222875e-38)


_ANY = [
    "n_query",
    "n_key",
    "n_lines",
    "name_stride",
    "position",
]
"""Numbers for whose values no kernel of its own is compiled."""


@triton.jit(do_not_specialize=_ANY)
def measure_rows(
    weights,
    out,
    wrong,
    n_query,
    n_key,
    n_lines,
    line_stride,
    row_stride,
    name_stride,
    position,
    CAUSAL: tl.constexpr,
    POSITIONAL: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Measure rows that see all keys, or all up to their own.

    Sums run in float32 over every ``KEYS``th key, and in float64 over those.

    Args:
        weights: ``(head of a sequence, query, key)``, keys beside each other.
        out: Of each row its mass, entropy, largest weight, participation ratio, mean distance,
            weight of the first key and mass on later keys, float64 ``(number, line)``.
        wrong: int32; set to 1 where a weight is negative, not finite or on a hidden key.
        n_lines: Rows of all heads.
        position: Key position of query 0.
    """
    name_stride = tl.cast(name_stride, tl.int64)
    line = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = line < n_lines
    query = line % n_query
    place = position + query
    at = weights + (line // n_query) * line_stride + query * row_stride
    high = tl.minimum(tl.maximum(place + 1, 0), n_key) if CAUSAL else query * 0 + n_key
    zero = tl.zeros([ROWS, KEYS], tl.float32)
    mass, inner, square, far, later = zero, zero, zero, zero, zero
    most, least, hidden = zero, zero, zero
    for start in range(0, n_key, KEYS):
        key = start + tl.arange(0, KEYS)
        there = inside[:, None] & (key < n_key)[None, :]
        a = tl.load(at[:, None] + key[None, :], mask=there, other=0.0).to(tl.float32)
        if CAUSAL:
            seen = key[None, :] < high[:, None]
            hidden += tl.where(seen, 0.0, tl.abs(a))
            a = tl.where(seen, a, 0.0)
        mass += a
        inner += a * tl.log2(tl.maximum(a, TINY))
        square += a * a
        most = tl.maximum(most, a)
        least = tl.minimum(least, a)
        if POSITIONAL:
            away = (place[:, None] - key[None, :]).to(tl.float32)
            far += a * tl.abs(away)
            if not CAUSAL:
                later += tl.where(away < 0, a, 0.0)
    whole = tl.sum(mass.to(tl.float64), 1)
    products = tl.sum(inner.to(tl.float64), 1) * LN2
    squares = tl.sum(square.to(tl.float64), 1)
    fine = (whole < float("inf")) & (tl.min(least, 1) >= 0) & (tl.sum(hidden, 1) == 0)
    tl.atomic_max(wrong + line * 0, 1, mask=inside & (fine == 0))
    first = tl.load(at, mask=inside & (high > 0), other=0.0).to(tl.float64)
    attends = whole > 0
    divisor = tl.where(attends, whole, 1.0)
    entropy = tl.log(divisor) - products / divisor
    tl.store(out + line, whole, mask=inside)
    tl.store(out + name_stride + line, tl.where(attends, entropy, 0.0), mask=inside)
    tl.store(out + 2 * name_stride + line, tl.max(most, 1).to(tl.float64), mask=inside)
    ratio = whole * whole / tl.where(attends, squares, 1.0)
    tl.store(out + 3 * name_stride + line, ratio, mask=inside)
    tl.store(out + 4 * name_stride + line, tl.sum(far.to(tl.float64), 1) / divisor, mask=inside)
    tl.store(out + 5 * name_stride + line, first, mask=inside)
    tl.store(out + 6 * name_stride + line, tl.sum(later.to(tl.float64), 1), mask=inside)
