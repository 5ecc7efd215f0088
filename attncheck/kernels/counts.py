"""How many visible keys each row's token, segment and delimiters select."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["count_targets"]


_ANY = [
    "n_heads",
    "n_query",
    "n_key",
    "reach_batch",
    "reach_head",
    "name_stride",
    "tokens_batch",
    "segments_batch",
    "delimiters_batch",
]
"""Numbers for whose values no kernel of its own is compiled."""


@triton.jit(do_not_specialize=_ANY)
def count_targets(
    low,
    high,
    tokens,
    segments,
    delimiters,
    found,
    n_heads,
    n_query,
    n_key,
    reach_batch,
    reach_head,
    name_stride,
    tokens_batch,
    segments_batch,
    delimiters_batch,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    DUPLICATE: tl.constexpr,
    INDUCTION: tl.constexpr,
    DELIMITER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count for ``ROWS`` rows of one head of one sequence.

    Args:
        found: float32 ``(name, batch, head, query)``, to be written at the rows that ``DUPLICATE``,
            ``INDUCTION``, ``DELIMITER`` and ``BLOCK`` name, unless negative.

    Others are those of `attncheck.kernels.rows.read_rows`.
    """
    batch, head = tl.program_id(1) // n_heads, tl.program_id(1) % n_heads
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < n_query
    reach = batch * reach_batch + head * reach_head
    begin = tl.load(low + reach * n_query + row, mask=inside, other=n_key)
    end = tl.load(high + reach * n_query + row, mask=inside, other=0)
    position = n_key - n_query + row
    own = tl.maximum(position, 0)
    tokens += batch * tokens_batch
    segments += batch * segments_batch
    delimiters += batch * delimiters_batch
    token = tl.load(tokens + own, mask=inside, other=-2) if DUPLICATE >= 0 else row
    segment = tl.load(segments + own, mask=inside, other=-2) if BLOCK >= 0 else row
    same, behind = tl.zeros([ROWS], tl.int32), tl.zeros([ROWS], tl.int32)
    marked, inside_own = tl.zeros([ROWS], tl.int32), tl.zeros([ROWS], tl.int32)
    from_key = tl.min(tl.where(end > begin, begin, n_key), 0) // KEYS * KEYS
    for start in range(from_key, tl.max(end, 0), KEYS):
        column = start + tl.arange(0, KEYS)
        there = column < n_key
        seen = (column[None, :] >= begin[:, None]) & (column[None, :] < end[:, None])
        if DUPLICATE >= 0:
            earlier = seen & (column[None, :] < position[:, None])
            here = tl.load(tokens + column, mask=there, other=-1)
            before = tl.load(tokens + column - 1, mask=there & (column > 0), other=-1)
            same += tl.sum((earlier & (here[None, :] == token[:, None])).to(tl.int32), 1)
            behind += tl.sum((earlier & (before[None, :] == token[:, None])).to(tl.int32), 1)
        if DELIMITER >= 0:
            mark = tl.load(delimiters + column, mask=there, other=0) != 0
            marked += tl.sum((seen & mark[None, :]).to(tl.int32), 1)
        if BLOCK >= 0:
            part = tl.load(segments + column, mask=there, other=-1)
            inside_own += tl.sum((seen & (part[None, :] == segment[:, None])).to(tl.int32), 1)
    into = found + tl.program_id(1).to(tl.int64) * n_query + row
    if DUPLICATE >= 0:
        tl.store(into + DUPLICATE * name_stride, same.to(tl.float32), mask=inside)
        tl.store(into + INDUCTION * name_stride, behind.to(tl.float32), mask=inside)
    if DELIMITER >= 0:
        tl.store(into + DELIMITER * name_stride, marked.to(tl.float32), mask=inside)
    if BLOCK >= 0:
        tl.store(into + BLOCK * name_stride, inside_own.to(tl.float32), mask=inside)
