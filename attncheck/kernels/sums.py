"""The second pass: weights added up by key, by distance and by cell of the coarse grid.

A program walks down one diagonal of tiles, so that the sums by distance add tile on tile in
registers; what it finds by key, by row and by cell it adds to memory, as integers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attncheck.kernels.tiles import load_query, products, shape_scores

__all__ = ["ONE", "add_up"]

ONE = 1 << 40
"""What a weight of 1 counts in sums that are integers."""

_ONE = tl.constexpr(float(ONE))


_ANY = [
    "n_heads",
    "n_query",
    "n_key",
    "n_blocks",
    "lead",
    "n_cells",
    "last",
    "reach_batch",
    "reach_head",
    "edges_side",
    "cells_size",
]
"""Numbers for whose values no kernel of its own is compiled."""


@triton.jit
def _counted(held):
    return (held * _ONE).to(tl.int64)


@triton.jit
def _add_tile(
    block,
    start,
    query,
    query_row,
    key,
    key_row,
    low,
    high,
    even,
    peaks,
    tops,
    columns,
    overlap,
    cells,
    factor,
    softcap,
    n_query,
    n_key,
    lead,
    n_cells,
    diagonals,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    STEP: tl.constexpr,
    POSITIONAL: tl.constexpr,
    WHOLE: tl.constexpr,
    LEAVES: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = block * ROWS + tl.arange(0, ROWS)
    inside = row < n_query
    peak = tl.load(peaks + row, mask=inside, other=1e30)
    top = tl.load(tops + row, mask=inside, other=0.0)
    share = tl.load(even + row, mask=inside, other=0.0)
    held = load_query(query, query_row, row, peak < 1e30, SIZE, WIDTH)
    scores = products(held, key, key_row, start, n_key, SIZE, WIDTH, KEYS, WHOLE, PRECISION)
    column = start + tl.arange(0, KEYS)
    there = (column >= 0) & (column < n_key)
    scores = shape_scores(scores, factor, softcap, SOFTCAP)
    weights = tl.exp2(scores - peak[:, None]) * top[:, None]
    if LEAVES:
        weights = tl.where((peak < 1e30)[:, None], weights, 0.0)
    if not WHOLE:
        begin = tl.load(low + row, mask=inside, other=0)
        end = tl.load(high + row, mask=inside, other=0)
        seen = (column[None, :] >= begin[:, None]) & (column[None, :] < end[:, None])
        weights = tl.where(seen, weights, 0.0)
    found = _counted(tl.sum(tl.minimum(weights, share[:, None]), 1))
    tl.atomic_add(overlap + row, found, mask=inside, sem="relaxed")
    if POSITIONAL:
        diagonals += weights
        TALL: tl.constexpr = min(STEP, ROWS)
        WIDE: tl.constexpr = min(STEP, KEYS)
        if TALL < ROWS:
            by_cell = tl.sum(tl.reshape(weights, [ROWS // TALL, TALL, KEYS]), 1)
            by_key = tl.sum(by_cell, 0)
        else:
            by_key = tl.sum(weights, 0)
            by_cell = by_key[None, :]
        by_cell = tl.sum(tl.reshape(by_cell, [ROWS // TALL, KEYS // WIDE, WIDE]), 2)
        down = (block * ROWS + tl.arange(0, ROWS // TALL) * TALL) // STEP
        along = (start + lead + tl.arange(0, KEYS // WIDE) * WIDE) // STEP
        kept = (down < (n_query + STEP - 1) // STEP)[:, None] & (along < n_cells)[None, :]
        at = cells + down[:, None] * n_cells + along[None, :]
        tl.atomic_add(at, _counted(by_cell), mask=kept, sem="relaxed")
    else:
        by_key = tl.sum(weights, 0)
    tl.atomic_add(columns + column, _counted(by_key), mask=there, sem="relaxed")
    return diagonals


@triton.jit(do_not_specialize=_ANY)
def add_up(
    query,
    key,
    key_heads,
    low,
    high,
    edges,
    even,
    peaks,
    tops,
    columns,
    offsets,
    overlap,
    cells,
    factor,
    softcap,
    n_heads,
    n_query,
    n_key,
    n_blocks,
    lead,
    n_cells,
    last,
    query_batch,
    query_head,
    query_row,
    key_batch,
    key_head,
    key_row,
    reach_batch,
    reach_head,
    edges_side,
    cells_size,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    STEP: tl.constexpr,
    POSITIONAL: tl.constexpr,
    BLOCKS: tl.constexpr,
    LEAVES: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Walk down one diagonal of tiles of one head of one sequence.

    Args:
        even: Weight of each key if the row were even, float32 ``(batch or 1, head or 1, query)``.
        peaks: Largest score of each row in units of log 2; 1e30 in rows that don't count.
        tops: Largest weight of each row, as a share of all that softmax ran over.
        columns: Weight by key, in `ONE` th, int64 ``(batch, head, key)``, added to, as are:
        offsets: Weight by distance ``(batch, head, offset)``, nearest first as `Tally` has it.
        overlap: Overlap with even rows ``(batch, head, query)``.
        cells: Weight by cell ``(batch, head, row cell, key cell)``.
        lead: Keys that the first cell lacks.
        n_cells: Cells along the keys.
        last: Number of the last diagonal of tiles; the first program walks it.
        cells_size: Cells of a head.
        STEP: Side of a cell.
        BLOCKS: A power of two that is no less than ``n_blocks``.
        LEAVES: Whether rows that don't count may see keys that hold anything.

    Others are those of `attncheck.kernels.rows.read_rows`.
    """
    JUMP: tl.constexpr = ROWS // KEYS
    number = last - tl.program_id(0)
    batch, head = tl.program_id(1) // n_heads, tl.program_id(1) % n_heads
    item = tl.program_id(1).to(tl.int64)
    reach = batch * reach_batch + head * reach_head
    query += batch.to(tl.int64) * query_batch + head.to(tl.int64) * query_head
    key += batch.to(tl.int64) * key_batch + tl.load(key_heads + head).to(tl.int64) * key_head
    key_row = tl.cast(key_row, tl.int64)
    low += reach * n_query
    high += reach * n_query
    even += reach * n_query
    peaks += item * n_query
    tops += item * n_query
    overlap += item * n_query
    columns += item * n_key
    cells += item * cells_size
    offsets += item * (n_query + n_key - 1)

    # Which tiles of the diagonal hold something, and whether any hides something.
    every = tl.arange(0, BLOCKS)
    begin = (number + every * JUMP) * KEYS - lead
    side, held = edges + reach * n_blocks + every, every < n_blocks
    least_low = tl.load(side, mask=held, other=n_key)
    most_low = tl.load(side + edges_side, mask=held, other=n_key)
    least_high = tl.load(side + 2 * edges_side, mask=held, other=0)
    most_high = tl.load(side + 3 * edges_side, mask=held, other=0)
    holds = held & (begin < most_high) & (begin + KEYS > least_low)
    whole = (begin >= most_low) & (begin + KEYS <= least_high)
    first = tl.min(tl.where(holds, every, BLOCKS), 0)
    end = tl.max(tl.where(holds, every + 1, 0), 0)
    # From the first that hides nothing to the next that does.
    open_ = (holds & whole).to(tl.int32)
    full = tl.min(tl.where(open_ != 0, every, end), 0)
    rest = tl.min(tl.where((open_ == 0) & (every > full), every, end), 0)

    diagonals = tl.zeros([ROWS, KEYS], tl.float32)
    for part in tl.static_range(3):
        first_of = first if part == 0 else (full if part == 1 else rest)
        last_of = full if part == 0 else (rest if part == 1 else end)
        for block in tl.range(first_of, last_of, 1, num_stages=STAGES if part == 1 else 1):
            diagonals = _add_tile(
                block, (number + block * JUMP) * KEYS - lead, query, query_row, key, key_row, low,
                high, even, peaks, tops, columns, overlap, cells, factor, softcap, n_query, n_key,
                lead, n_cells, diagonals,
                SIZE, WIDTH, ROWS, KEYS, STEP, POSITIONAL, part == 1, LEAVES, SOFTCAP, PRECISION,
            )  # fmt: skip
    if POSITIONAL:  # noqa: SIM102 - one is known when the kernel is compiled, the other when it runs
        if end > first:
            down, along = tl.arange(0, ROWS)[:, None], tl.arange(0, KEYS)[None, :]
            turned = tl.gather(diagonals, (along + down) % KEYS, 1)
            laps = (along + down) // KEYS
            place = number * KEYS - lead + n_query - 1 + tl.arange(0, KEYS)
            for lap in tl.static_range(JUMP + 1):
                found = tl.sum(tl.where(laps == lap, turned, 0.0), 0)
                at = place - lap * KEYS
                kept = (at >= 0) & (at < n_query + n_key - 1)
                tl.atomic_add(offsets + at, _counted(found), mask=kept, sem="relaxed")
