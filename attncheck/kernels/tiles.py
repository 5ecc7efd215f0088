"""What the kernels share: a tile of products, and which of its pairs are visible."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["HIDDEN", "LN2", "NOTHING", "load_query", "products", "shape_scores"]

LN2 = tl.constexpr(0.6931471805599453)

HIDDEN = tl.constexpr(-1e30)
"""Score of a hidden key: finite, so that 0 times it is 0."""

NOTHING = tl.constexpr(-1e20)
"""Largest score of a row of which nothing was read: far above a hidden key's, also once that is
scaled, so that no rounding makes a weight of it.
"""


@triton.jit
def load_query(
    query,
    stride,
    row,
    counts,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Load the queries of a tile: ``(row, WIDTH)``; 0 in rows that don't count."""
    size = tl.arange(0, WIDTH)
    at = query + row.to(tl.int64)[:, None] * stride + size[None, :]
    kept = counts[:, None]
    if SIZE != WIDTH:
        kept = kept & (size < SIZE)[None, :]
    return tl.load(at, mask=kept, other=0.0)


@triton.jit
def products(
    query,
    key,
    stride,
    start,
    n_key,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    KEYS: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Multiply queries with the keys from ``start`` on: ``(row, KEYS)``, float32.

    The stride is int64: a place may lie beyond 2**31 numbers.
    """
    place, size = tl.arange(0, KEYS), tl.arange(0, WIDTH)
    at = key + start * stride + place[None, :] * stride + size[:, None]
    if WHOLE and SIZE == WIDTH:
        held = tl.load(at)
    else:
        there = ((start + place >= 0) & (start + place < n_key))[None, :] & (size < SIZE)[:, None]
        held = tl.load(at, mask=there, other=0.0)
    return tl.dot(query, held, input_precision=PRECISION)


@triton.jit
def shape_scores(held, factor, softcap, SOFTCAP: tl.constexpr):
    """Make scores of products, in units of log 2.

    Args:
        held: Products of query and key.
        factor: Scale, in units of log 2; where scores are capped, of twice the score over the cap.
        softcap: The cap, in units of log 2.
        SOFTCAP: Whether scores are capped.
    """
    scores = held * factor
    if SOFTCAP:
        scores = softcap - 2 * softcap / (tl.exp2(scores) + 1)
    return scores
