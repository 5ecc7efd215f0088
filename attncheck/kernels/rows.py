"""The first pass: softmax of each row, and what is measured along it."""

from __future__ import annotations

import triton
import triton.language as tl

from attncheck.kernels.tiles import HIDDEN, LN2, NOTHING, load_query, products, shape_scores

__all__ = ["read_rows"]


_ANY = [
    "n_heads",
    "n_query",
    "n_key",
    "n_blocks",
    "reach_batch",
    "reach_head",
    "edges_side",
    "name_stride",
    "tokens_batch",
    "segments_batch",
    "delimiters_batch",
]
"""Numbers for whose values no kernel of its own is compiled."""


@triton.jit
def _read_tile(
    query,
    key,
    stride,
    start,
    n_key,
    factor,
    softcap,
    low,
    high,
    position,
    reference,
    token,
    segment,
    tokens,
    segments,
    delimiters,
    sums,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    KEYS: tl.constexpr,
    WHOLE: tl.constexpr,
    DISTANCES: tl.constexpr,
    CAUSAL: tl.constexpr,
    TOKENS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    DELIMITERS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add a tile to the sums of its rows, which count from the largest score so far."""
    peak, mass, inner, square, far, later, same, behind, marked, own = sums
    scores = products(query, key, stride, start, n_key, SIZE, WIDTH, KEYS, WHOLE, PRECISION)
    column = start + tl.arange(0, KEYS)
    there = (column >= 0) & (column < n_key)
    unit = factor
    if SOFTCAP:
        scores = shape_scores(scores, factor, softcap, SOFTCAP)
        unit = 1.0
    if not WHOLE:
        seen = (column[None, :] >= low[:, None]) & (column[None, :] < high[:, None])
        scores = tl.where(seen, scores, HIDDEN)
    new = tl.maximum(peak, tl.max(scores, 1) * unit)
    fell = peak - new
    kept = tl.exp2(fell)
    scores = scores * unit - new[:, None]
    weights = tl.exp2(scores)
    inner = kept * (inner + fell * mass) + tl.sum(weights * scores, 1)
    mass = kept * mass + tl.sum(weights, 1)
    square = kept * kept * square + tl.sum(weights * weights, 1)
    if DISTANCES:
        if CAUSAL:
            away = (reference - column).to(tl.float32)[None, :]
            far = kept * far + tl.sum(weights * away, 1)
        else:
            ahead = column[None, :] - position[:, None]
            far = kept * far + tl.sum(weights * tl.abs(ahead).to(tl.float32), 1)
            later = kept * later + tl.sum(tl.where(ahead > 0, weights, 0.0), 1)
    if TOKENS:
        here = tl.load(tokens + column, mask=there, other=-1)
        before = tl.load(tokens + column - 1, mask=there & (column > 0), other=-1)
        earlier = column[None, :] < position[:, None]
        chosen = (here[None, :] == token[:, None]) & earlier
        same = kept * same + tl.sum(tl.where(chosen, weights, 0.0), 1)
        chosen = (before[None, :] == token[:, None]) & earlier
        behind = kept * behind + tl.sum(tl.where(chosen, weights, 0.0), 1)
    if DELIMITERS:
        mark = tl.load(delimiters + column, mask=there, other=0).to(tl.float32)
        marked = kept * marked + tl.sum(weights * mark[None, :], 1)
    if SEGMENTS:
        part = tl.load(segments + column, mask=there, other=-1)
        chosen = part[None, :] == segment[:, None]
        own = kept * own + tl.sum(tl.where(chosen, weights, 0.0), 1)
    return new, mass, inner, square, far, later, same, behind, marked, own


@triton.jit(do_not_specialize=_ANY)
def read_rows(
    query,
    key,
    key_heads,
    low,
    high,
    edges,
    first,
    counts,
    tokens,
    segments,
    delimiters,
    table,
    peaks,
    factor,
    softcap,
    n_heads,
    n_query,
    n_key,
    n_blocks,
    query_batch,
    query_head,
    query_row,
    key_batch,
    key_head,
    key_row,
    reach_batch,
    reach_head,
    edges_side,
    name_stride,
    tokens_batch,
    segments_batch,
    delimiters_batch,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    DISTANCES: tl.constexpr,
    CAUSAL: tl.constexpr,
    DUPLICATE: tl.constexpr,
    INDUCTION: tl.constexpr,
    DELIMITER: tl.constexpr,
    BLOCK: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Read ``ROWS`` rows of one head of one sequence.

    Args:
        query: ``(batch, head, query, size)``.
        key: ``(batch, key-value head, key, size)``.
        key_heads: The key-value head of each head, int32.
        low: First visible key, int32 ``(batch or 1, head or 1, query)``.
        high: One behind the last.
        edges: Least and largest ``low``, least and largest ``high`` of each block of rows that
            see something, int32 ``(4, batch or 1, head or 1, block)``.
        first: First key that any query sees, int32 ``(batch or 1, head or 1)``.
        counts: Rows that count, bytes ``(batch, head, query)``.
        tokens: int32 ``(batch or 1, key)``; read where ``DUPLICATE`` names a row of the table.
        segments: int32 ``(batch or 1, key)``; read where ``BLOCK`` does.
        delimiters: Bytes ``(batch or 1, key)``; read where ``DELIMITER`` does.
        table: float32 ``(name, batch, head, query)``, as `attncheck.evaluate.tally` has it.
        peaks: Largest score in units of log 2, float32 ``(batch, head, query)``, to be written.
        factor: Scale of the scores, in units of log 2; where ``SOFTCAP``, twice that over the cap.
        softcap: The cap, in units of log 2; read where ``SOFTCAP``.
    """
    block = n_blocks - 1 - tl.program_id(0)
    batch, head = tl.program_id(1) // n_heads, tl.program_id(1) % n_heads
    line = tl.program_id(1).to(tl.int64) * n_query
    row = block * ROWS + tl.arange(0, ROWS)
    inside = row < n_query
    reach = batch * reach_batch + head * reach_head
    held_low = tl.load(low + reach * n_query + row, mask=inside, other=0)
    held_high = tl.load(high + reach * n_query + row, mask=inside, other=0)
    counted = tl.load(counts + line + row, mask=inside, other=0) != 0
    position = n_key - n_query + row
    reference = n_key - n_query + block * ROWS + ROWS - 1
    query += batch.to(tl.int64) * query_batch + head.to(tl.int64) * query_head
    key_head_of = tl.load(key_heads + head).to(tl.int64)
    key += batch.to(tl.int64) * key_batch + key_head_of * key_head
    key_row = tl.cast(key_row, tl.int64)
    name_stride = tl.cast(name_stride, tl.int64)
    held = load_query(query, query_row, row, counted, SIZE, WIDTH)
    tokens += batch * tokens_batch
    segments += batch * segments_batch
    delimiters += batch * delimiters_batch
    own = tl.maximum(position, 0)
    token = tl.load(tokens + own, mask=inside, other=-2) if DUPLICATE >= 0 else row
    segment = tl.load(segments + own, mask=inside, other=-2) if BLOCK >= 0 else row

    side = edges + reach * n_blocks + block
    begin = tl.load(side) // KEYS * KEYS
    full = (tl.load(side + edges_side) + KEYS - 1) // KEYS * KEYS
    rest = tl.load(side + 2 * edges_side) // KEYS * KEYS
    end = (tl.load(side + 3 * edges_side) + KEYS - 1) // KEYS * KEYS
    full = tl.minimum(tl.maximum(full, begin), end)
    rest = tl.minimum(tl.maximum(rest, full), end)

    zero = tl.zeros([ROWS], tl.float32)
    sums = (zero + NOTHING, zero, zero, zero, zero, zero, zero, zero, zero, zero)
    for part in tl.static_range(3):  # tiles that hide something, that hide nothing, that do again
        first_of = begin if part == 0 else (full if part == 1 else rest)
        last_of = full if part == 0 else (rest if part == 1 else end)
        for start in tl.range(first_of, last_of, KEYS, num_stages=STAGES if part == 1 else 1):
            sums = _read_tile(
                held, key, key_row, start, n_key, factor, softcap, held_low, held_high,
                position, reference, token, segment, tokens, segments, delimiters, sums,
                SIZE, WIDTH, KEYS, part == 1, DISTANCES, CAUSAL, DUPLICATE >= 0, BLOCK >= 0,
                DELIMITER >= 0, SOFTCAP, PRECISION,
            )  # fmt: skip
    peak, mass, inner, square, far, later, same, behind, marked, inside_own = sums

    first_key = tl.load(first + reach)
    size = tl.arange(0, WIDTH)
    at = key + first_key.to(tl.int64) * key_row + size
    there = tl.load(at, mask=size < SIZE, other=0.0).to(tl.float32)
    score = tl.sum(held.to(tl.float32) * there[None, :], 1)
    score = shape_scores(score, factor, softcap, SOFTCAP)
    sees = (held_low <= first_key) & (first_key < held_high)
    on_first = tl.where(sees, tl.exp2(tl.minimum(score - peak, 0.0)), 0.0)

    top = 1 / tl.where(mass == 0, 1.0, mass)
    into = table + line + row
    tl.store(peaks + line + row, peak, mask=inside)
    tl.store(into, peak * LN2, mask=inside)
    tl.store(into + name_stride, top, mask=inside)
    tl.store(into + 2 * name_stride, mass * top, mask=inside)
    tl.store(into + 3 * name_stride, inner * top * LN2, mask=inside)
    tl.store(into + 4 * name_stride, tl.sqrt(square) * top, mask=inside)
    tl.store(into + 5 * name_stride, on_first * top, mask=inside)
    if DISTANCES:
        if CAUSAL:
            tl.store(
                into + 6 * name_stride,
                far * top - (reference - position).to(tl.float32) * (mass * top),
                mask=inside,
            )
        else:
            tl.store(into + 6 * name_stride, far * top, mask=inside)
            tl.store(into + 7 * name_stride, later * top, mask=inside)
    if DUPLICATE >= 0:
        tl.store(into + DUPLICATE * name_stride, same * top, mask=inside)
        tl.store(into + INDUCTION * name_stride, behind * top, mask=inside)
    if DELIMITER >= 0:
        tl.store(into + DELIMITER * name_stride, marked * top, mask=inside)
    if BLOCK >= 0:
        tl.store(into + BLOCK * name_stride, inside_own * top, mask=inside)
