"""The walk of the blocked evaluator: every block of weights is made once, read, and forgotten.

Blocks are rows of a few heads by all keys that these rows see, so that nothing is computed that
causality, a window or padding discards. A block is small enough to stay in the processor's cache
while its dozen reductions read it; what costs is the number of passes over it, so that each line
of `_Reader.read` is one pass, and the kernels are those that were measured to be fastest. What
heads share, `_Rows`, is made once for all of them; as many heads as fit go together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from attncheck.attention import LayerAttention, QueryKey
from attncheck.evaluate.reach import Reach
from attncheck.evaluate.scores import Hidden, Scores, hidden, hide, of_heads
from attncheck.evaluate.tally import Tally
from attncheck.evaluate.targets import Picked, Targets
from attncheck.patterns.grid import Marks

__all__ = ["chunks", "walk"]

ROWS: Final = 64
"""Query rows of a block."""

BLOCK_WEIGHTS: Final = {"cpu": 1 << 20, "cuda": 1 << 25}
"""Weights in a block, by device: two such buffers stay in cache; what keeps a GPU busy."""


@dataclass(frozen=True)
class Block:
    """One block: its rows, the keys that some of them sees, and those that all of them see.

    Attributes:
        rows: Which queries.
        keys: Which keys.
        inner: From where to where every row that counts sees all keys.
    """

    rows: slice
    keys: slice
    inner: tuple[int, int]

    @property
    def size(self) -> int:
        """Weights of one head."""
        return int((self.rows.stop - self.rows.start) * (self.keys.stop - self.keys.start))


def chunks(layer: LayerAttention) -> Iterator[slice]:
    """Yield the sequences that are walked together."""
    batch, heads, n_query, n_key = layer.shape
    sequences = max(1, _budget(layer) // (min(ROWS, n_query) * n_key * heads))
    for start in range(0, batch, sequences):
        yield slice(start, min(start + sequences, batch))


def walk(layer: LayerAttention, reach: Reach, marks: Marks, valid: Tensor, batch: slice) -> Tally:
    """Walk the blocks of some sequences.

    Args:
        layer: The layer, that holds query and key.
        reach: What the rows of these sequences see.
        marks: Tokens, segments and delimiters of these sequences.
        valid: Rows that carry attention, bool ``(batch, head, query)``.
        batch: Which sequences.
    """
    scores = Scores.of(_record(layer), batch)
    usable = valid & (reach.seen >= 2)
    targets = Targets(marks, reach, layer.positional)
    tally = Tally.empty(scores, targets, valid, usable, scores.key.dtype)
    reader = _Reader(tally, scores)
    blocks = list(_blocks(reach, valid))
    sequences, heads = usable.shape[:2]
    largest = sequences * max((block.size for block in blocks), default=0)
    room = min(largest * heads, max(_budget(layer), largest))
    memory = [scores.key.new_empty(room) for _ in range(2)]
    kept = None if bool(valid.all()) else valid
    for block in blocks:
        rows = _Rows.of(tally, block, layer.causal)
        for head in scores.parts(room // (sequences * block.size)):
            held = scores.block(block.rows, block.keys, head, kept, memory[0])
            hide(held, rows.hidden, head)
            reader.read(held, memory[1], rows, head)
    return tally


def _budget(layer: LayerAttention) -> int:
    return BLOCK_WEIGHTS.get(_record(layer).device.type, BLOCK_WEIGHTS["cpu"])


def _blocks(reach: Reach, valid: Tensor) -> Iterator[Block]:
    """Yield the blocks that hold something, from the first rows to the last."""
    none = reach.n_key
    sees = reach.seen > 0
    counts = (valid & sees).any(0).any(0)
    least = torch.stack([torch.where(sees, end, none) for end in (reach.low, reach.high)])
    most = torch.stack([torch.where(sees, end, -1) for end in (reach.low, reach.high)])
    beyond = -reach.n_query % ROWS
    first, end = _by_block(least.amin((1, 2)), beyond, none).amin(-1).tolist()
    begin, last = _by_block(most.amax((1, 2)), beyond, -1).amax(-1).tolist()
    for number, there in enumerate(_by_block(counts, beyond, False).any(-1).tolist()):
        if there:
            start = number * ROWS
            rows = slice(start, min(start + ROWS, reach.n_query))
            yield Block(rows, slice(first[number], last[number]), (begin[number], end[number]))


def _by_block(per_row: Tensor, beyond: int, value: int) -> Tensor:
    """Split rows into blocks: ``(..., query)`` to ``(..., block, row)``."""
    return F.pad(per_row, (0, beyond), value=value).view(*per_row.shape[:-1], -1, ROWS)


def _record(layer: LayerAttention) -> QueryKey:
    record = layer.query_key
    assert record is not None, "the layer holds weights"
    return record


@dataclass(frozen=True, eq=False)
class _Rows:
    """What the heads of a block share.

    Attributes:
        block: Rows and keys.
        hidden: Keys that are hidden, stretch by stretch.
        even: Weight of each key if the rows were even, ``(batch or 1, head or 1, query)``.
        picked: What tokens and segments select.
        behind: How far the keys lie behind the block's last row, ``(key,)``, and that row behind
            each row, ``(query,)``; None where nothing hides what lies ahead or distance means
            nothing.
        ends: Whether the block's last corner lies on the diagonal, and nothing beyond it.
        usable: Whether every row is usable.
    """

    block: Block
    hidden: list[Hidden]
    even: Tensor
    picked: Picked
    behind: tuple[Tensor, Tensor] | None
    ends: bool
    usable: bool

    @classmethod
    def of(cls, tally: Tally, block: Block, causal: bool) -> _Rows:
        """Prepare a block, and count what its rows see of their targets."""
        reach, rows, keys = tally.reach, block.rows, block.keys
        dtype = tally.table.dtype
        picked = tally.targets.pick(rows, keys, dtype)
        for name, count in picked.counts.items():
            tally.rows[f"{name} keys"][..., rows] = count
        end = reach.n_key - reach.n_query + rows.stop
        behind = None
        if causal and tally.offsets is not None:
            key = torch.arange(keys.start, keys.stop, device=reach.low.device)
            behind = (end - 1 - key).to(dtype), (end - 1 - reach.positions[rows]).to(dtype)
        return cls(
            block,
            list(hidden(reach, rows, keys, block.inner)),
            1 / reach.seen[..., rows].clamp(min=1).to(dtype),
            picked,
            behind,
            causal and keys.stop == end,
            bool(tally.usable[..., rows].all()),
        )


@dataclass(frozen=True, eq=False)
class _Reader:
    """Reads each block of scores into a tally."""

    tally: Tally
    source: Scores

    def read(self, scores: Tensor, memory: Tensor, shared: _Rows, head: slice) -> None:
        """Make weights of scores, which are overwritten, and take all that is wanted of them."""
        tally, block = self.tally, shared.block
        rows = tally.part(head, block.rows)
        weights = memory[: scores.numel()].view(scores.shape)
        torch.amax(scores, -1, out=rows["peak"])
        scores.sub_(rows["peak"][..., None])
        torch.softmax(scores, -1, out=weights)
        torch.amax(weights, -1, out=rows["top"])
        torch.sum(weights, -1, out=rows["mass"])
        torch.sum(scores.mul_(weights), -1, out=rows["inner"])
        torch.linalg.vector_norm(weights, dim=-1, out=rows["norm"])
        self._first(weights, block, head, rows["first"])
        if shared.behind is not None:
            rows["far"].copy_(_product(weights, shared.behind[0]))
            rows["far"].addcmul_(shared.behind[1], rows["mass"], value=-1)
        elif tally.offsets is not None:
            self._distances(weights, block, rows)
        shared.picked.read(weights, rows)
        if self.source.sinks is not None:
            self._share(weights, block, head, rows)
        if not shared.usable:  # also where they hold NaN
            usable = tally.usable[:, head, block.rows, None]
            weights.masked_fill_(~usable, 0)
        tally.add_block(weights, block.rows, block.keys, head, ends=shared.ends)
        even = of_heads(shared.even, head)[..., None]
        torch.sum(torch.minimum(weights, even, out=weights), -1, out=rows["overlap"])

    def _first(self, weights: Tensor, block: Block, head: slice, out: Tensor) -> None:
        """Pick the weights of the first key that any query sees."""
        first = self.tally.first
        if first.numel() == 1:
            place = int(first) - block.keys.start
            if 0 <= place < weights.shape[-1]:
                out.copy_(weights[..., place])
            return
        place = (of_heads(first, head) - block.keys.start)[..., None, None]
        there = (place >= 0) & (place < weights.shape[-1])
        index = place.clamp(0, weights.shape[-1] - 1).expand(*weights.shape[:3], 1)
        torch.mul(weights.gather(-1, index)[..., 0], there[..., 0], out=out)

    def _distances(self, weights: Tensor, block: Block, into: dict[str, Tensor]) -> None:
        """Mean distance of each row, and its mass on later keys.

        Distances from the block's first row are one matrix-vector product; what remains is the
        row's own place, before, behind and in the square of the rows' own keys.
        """
        rows, keys = block.rows, block.keys
        places = self.tally.reach.positions[rows].to(weights.dtype)
        key = torch.arange(keys.start, keys.stop, dtype=weights.dtype, device=weights.device)
        own = self.tally.reach.n_key - self.tally.reach.n_query + rows.start
        begin = min(max(own - keys.start, 0), weights.shape[-1])
        end = min(max(begin + rows.stop - rows.start, begin), weights.shape[-1])
        outside = (key - own).abs()
        outside[begin:end] = 0
        behind = places[:, None] - key[begin:end]
        square = weights[..., begin:end]
        far = _product(weights, outside) + (square * behind.abs()).sum(-1)
        later = (square * (behind < 0)).sum(-1)
        beyond = 0 * later
        if end < weights.shape[-1]:
            beyond = weights[..., end:].sum(-1)
        before = into["mass"] - square.sum(-1) - beyond
        into["far"].copy_(far + (places - own) * (before - beyond))
        into["later"].copy_(later + beyond)

    def _share(self, weights: Tensor, block: Block, head: slice, into: dict[str, Tensor]) -> None:
        """Scale rows to what a learned sink leaves them."""
        sinks = self.source.sinks
        assert sinks is not None
        sinks = of_heads(sinks, head).to(weights.dtype)
        sinks = sinks if sinks.shape[-1] == 1 else sinks[..., block.rows]
        into["share"].copy_(_keys_share(into["peak"], into["top"], sinks))
        weights.mul_(into["share"][..., None])


def _keys_share(peak: Tensor, top: Tensor, sinks: Tensor) -> Tensor:
    """Share of a row that a learned sink leaves to the keys, from the row's log-sum-exp."""
    return torch.sigmoid(peak - top.log() - sinks)


def _product(weights: Tensor, vector: Tensor) -> Tensor:
    """Multiply a vector along the keys."""
    return torch.mv(weights.view(-1, weights.shape[-1]), vector).view(weights.shape[:-1])
