"""The fused evaluator: the walk of the blocked one, with loops that read a row once.

Where numba is installed, a row is read while it lies in the processor's first cache, instead of
once for each of a dozen reductions. Heads run beside each other, each on one thread, from their
product of query and key on. What is found is the `Tally` of the blocked evaluator.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from torch import Tensor

from attncheck.attention import LayerAttention
from attncheck.attention.quiet import quiet
from attncheck.compiled import missing
from attncheck.compiled.ledger import Sight
from attncheck.compiled.threads import side_by_side
from attncheck.evaluate.ledgers import Books
from attncheck.evaluate.products import Products
from attncheck.evaluate.reach import Reach
from attncheck.evaluate.scores import Scores
from attncheck.evaluate.tally import Tally
from attncheck.evaluate.targets import Targets
from attncheck.patterns.cells import CellGrid
from attncheck.patterns.grid import Marks

__all__ = ["sequences_together", "unfit", "walk_fused"]

Block: TypeAlias = tuple[slice, slice]

BLOCK_WEIGHTS: Final = 1 << 19
"""Scores in a block, unless the fewest rows hold more."""

ROWS: Final = (64, 128)
"""Fewest and most query rows of a block: a product of more rows is faster, and computes more that
causality discards."""

NUMBERS: Final = 1 << 22
"""Numbers of rows that are held together, unless one sequence has more."""


def unfit(layer: LayerAttention) -> str | None:
    """Say why compiled loops can't read what a layer holds; None if they may be tried."""
    if layer.queries:
        return "only some queries of the call are held"
    if layer.device.type != "cpu":
        return f"compiled loops run on a CPU, not on {layer.device.type}"
    record = layer.query_key
    if (layer.dtype if record is None else record.computed_in) == torch.float64:
        return "compiled loops are float32, not float64"
    return missing()


def sequences_together(layer: LayerAttention) -> Iterator[slice]:
    """Yield the sequences that are walked together."""
    batch, heads, n_query, _ = layer.shape
    step = max(1, NUMBERS // (32 * heads * max(1, n_query)))
    for start in range(0, batch, step):
        yield slice(start, min(start + step, batch))


def walk_fused(
    layer: LayerAttention, reach: Reach, marks: Marks, valid: Tensor, batch: slice
) -> Tally:
    """Walk the blocks of some sequences; arguments and result are those of the blocked `walk`.

    Raises:
        ValueError: Rows have hidden keys between visible ones.
    """
    if reach.mask is not None:
        raise ValueError("reach: compiled loops read rows that see one stretch of keys")
    record = layer.query_key
    assert record is not None
    every = Scores.of(record, batch)
    scores = [every.of_sequence(number) for number in range(batch.stop - batch.start)]
    n_rows = _rows(reach)
    most = BLOCK_WEIGHTS // max(1, n_rows * reach.n_key)
    heads = [(number, head) for number in range(len(scores)) for head in _heads(every, most)]
    parts = _parts(reach, n_rows, len(heads))
    targets = Targets(marks, reach, layer.positional)
    books = Books.open(targets, valid, torch.float32, len(parts))
    blocks = [_blocks(books.sights[number], parts, n_rows) for number in range(len(scores))]
    tasks = [
        _Task(books, scores[number].of_heads(head), number, head, part, blocks[number][part])
        for number, head in heads
        for part in range(len(parts))
    ]
    side_by_side(_Task.run, tasks)
    return books.tally(every)


def _blocks(sight: Sight, parts: list[range], n_rows: int) -> list[list[Block]]:
    """Of each part the rows of each block, and the keys that some of them sees in some head."""
    counts = sight.valid & (sight.high > sight.low)
    low = np.where(counts, sight.low, np.iinfo(np.int64).max).min(0)
    high = np.where(counts, sight.high, 0).max(0)
    found = []
    for queries in parts:
        starts = np.arange(queries.start, queries.stop, n_rows)
        least = np.minimum.reduceat(low[: queries.stop], starts)
        most = np.maximum.reduceat(high[: queries.stop], starts)
        found.append(
            [
                (slice(start, min(start + n_rows, queries.stop)), slice(min(first, end), end))
                for start, first, end in zip(
                    *map(np.ndarray.tolist, (starts, least, most)), strict=True
                )
            ]
        )
    return found


def _rows(reach: Reach) -> int:
    """Rows of a block: a power of two, so that blocks and cells have borders in common."""
    least, most = ROWS
    rows = least
    while rows < min(most, reach.n_query // 8) and 2 * rows * reach.n_key <= BLOCK_WEIGHTS:
        rows *= 2
    return rows


def _heads(scores: Scores, most: int) -> Iterator[slice]:
    """Yield the heads that are walked together: as many as a block holds, not all."""
    fair = -(-scores.query.shape[1] // torch.get_num_threads())
    return scores.parts(max(1, min(most, fair)))


def _parts(reach: Reach, rows: int, tasks: int) -> list[range]:
    """Cut the queries where there are fewer heads than threads: into parts of like area."""
    wanted = -(-torch.get_num_threads() // max(1, tasks))
    step = max(rows, CellGrid(reach.n_query, reach.n_key).step)
    borders = {0, reach.n_query}
    for number in range(1, wanted):
        share = (number / wanted) ** (0.5 if bool((reach.high.diff() > 0).any()) else 1)
        borders.add(min(reach.n_query, round(reach.n_query * share / step) * step))
    edges = sorted(borders)
    return [range(start, stop) for start, stop in pairwise(edges)]


@dataclass(frozen=True, eq=False)
class _Task:
    """Some heads of one sequence, and the rows that are walked.

    Attributes:
        books: Where everything is written.
        scores: Query and key of these heads of the sequence.
        sequence: Number of the sequence in the books.
        head: Which heads.
        part: Number of the part of the rows.
        blocks: Rows and keys of each block.
    """

    books: Books
    scores: Scores
    sequence: int
    head: slice
    part: int
    blocks: list[Block]

    def run(self) -> None:
        """Walk the blocks."""
        from attncheck.compiled.loops import read_scores

        sight = self.books.sight(self.sequence, self.head)
        ledger = self.books.ledger(self.sequence, self.head, self.part)
        keys, sinks = self.books.keys[self.sequence], self._sinks(sight.valid.shape)
        largest = max(((r.stop - r.start) * (k.stop - k.start) for r, k in self.blocks), default=0)
        with quiet("cpu"):
            products = Products.of(self.scores, largest)
            for rows, seen in self.blocks:
                block = products.block(rows, seen)
                read_scores(block, rows.start, seen.start, sinks, sight, keys, ledger)

    def _sinks(self, shape: tuple[int, int]) -> Any:
        if self.scores.sinks is None:
            return np.zeros((0, shape[1]))
        return np.array(np.broadcast_to(self.scores.sinks[0].double().numpy(), shape), order="C")
