"""The walk of the blocked evaluator: every block of weights is made once, read, and forgotten.

Blocks are rows of a few heads by all keys that these rows see, so that nothing is computed that
causality, a window or padding discards. A block is small enough to stay in the processor's cache
while its dozen reductions read it; what costs is the number of passes over it, so that each line
of `_read` is one pass, and the kernels are those that were measured to be fastest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from attncheck.attention import LayerAttention, QueryKey
from attncheck.evaluate.reach import Reach
from attncheck.evaluate.scores import Scores, hide
from attncheck.evaluate.tally import Tally
from attncheck.evaluate.targets import Targets
from attncheck.patterns.grid import Marks

__all__ = ["chunks", "walk"]

ROWS: Final = 64
"""Query rows of a block."""

BLOCK_WEIGHTS: Final = {"cpu": 1 << 19, "cuda": 1 << 25}
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


def chunks(layer: LayerAttention) -> Iterator[tuple[slice, slice]]:
    """Yield the sequences and heads that are walked together, whole groups where they fit."""
    batch, heads, n_query, n_key = layer.shape
    record = _record(layer)
    group = next((h for h in range(heads) if record.key_heads[h] != record.key_heads[0]), heads)
    budget = BLOCK_WEIGHTS.get(record.device.type, BLOCK_WEIGHTS["cpu"])
    fitting = min(heads, max(1, budget // (min(ROWS, n_query) * n_key)))
    if fitting >= group:
        fitting = fitting // group * group
    else:  # a part of a group, that divides it
        fitting = max(size for size in range(1, fitting + 1) if group % size == 0)
    sequences = max(1, budget // (min(ROWS, n_query) * n_key * heads))
    for start in range(0, batch, sequences):
        for head in range(0, heads, fitting):
            ends = min(start + sequences, batch), min(head + fitting, heads)
            yield slice(start, ends[0]), slice(head, ends[1])


def walk(
    layer: LayerAttention, reach: Reach, marks: Marks, valid: Tensor, batch: slice, head: slice
) -> Tally:
    """Walk the blocks of some sequences and heads.

    Args:
        layer: The layer, that holds query and key.
        reach: What the rows of these sequences and heads see.
        marks: Tokens, segments and delimiters of these sequences.
        valid: Rows that carry attention, bool ``(batch, head, query)``.
        batch: Which sequences.
        head: Which heads.
    """
    scores = Scores.of(_record(layer), batch, head)
    usable = valid & (reach.seen >= 2)
    targets = Targets(marks, reach, layer.positional)
    tally = Tally.empty(scores, targets, valid, usable)
    reader = _Reader(tally, layer.causal)
    blocks = list(_blocks(reach, valid))
    most = max((_size(block) for block in blocks), default=0) * usable.shape[0] * usable.shape[1]
    memory = [scores.key.new_empty(most) for _ in range(2)]
    kept = None if bool(valid.all()) else valid
    for block in blocks:
        held = scores.block(block.rows, block.keys, kept, memory[0])
        hide(held, reach, block.rows, block.keys, block.inner)
        reader.read(held, memory[1], block)
    return tally


def _size(block: Block) -> int:
    rows, keys = block.rows, block.keys
    return int((rows.stop - rows.start) * (keys.stop - keys.start))


def _blocks(reach: Reach, valid: Tensor) -> Iterator[Block]:
    """Yield the blocks that hold something, from the first rows to the last."""
    counts = (valid & (reach.seen > 0)).any(0).any(0)
    none = torch.iinfo(torch.int64).max
    sees = reach.seen > 0
    bounds = torch.stack(
        [
            torch.where(sees, reach.low, none).amin((0, 1)),
            torch.where(sees, reach.low, -1).amax((0, 1)),
            torch.where(sees, reach.high, none).amin((0, 1)),
            torch.where(sees, reach.high, -1).amax((0, 1)),
        ]
    ).cpu()
    counts = counts.cpu()
    for start in range(0, reach.n_query, ROWS):
        rows = slice(start, min(start + ROWS, reach.n_query))
        if not bool(counts[rows].any()):
            continue
        first, _, _, _ = bounds[:, rows].amin(1).tolist()
        _, begin, _, last = bounds[:, rows].amax(1).tolist()
        end = int(bounds[2, rows].amin())
        yield Block(rows, slice(first, last), (begin, end))


def _record(layer: LayerAttention) -> QueryKey:
    record = layer.query_key
    assert record is not None, "the layer holds weights"
    return record


@dataclass(frozen=True, eq=False)
class _Reader:
    """Reads each block of scores into a tally."""

    tally: Tally
    causal: bool

    def read(self, scores: Tensor, memory: Tensor, block: Block) -> None:
        """Make weights of scores, which are overwritten, and take all that is wanted of them."""
        tally, rows = self.tally, block.rows
        weights = memory[: scores.numel()].view(scores.shape)
        peak = scores.amax(-1)
        scores.sub_(peak[..., None])
        torch.softmax(scores, -1, out=weights)
        held = {
            "peak": peak,
            "top": weights.amax(-1),
            "mass": weights.sum(-1),
            "inner": scores.mul_(weights).sum(-1),
            "norm": torch.linalg.vector_norm(weights, dim=-1),
            "first": self._first(weights, block),
        }
        if tally.offsets is not None:
            held["far"], held["later"] = self._distances(weights, block, held["mass"])
        for name, (found, count) in tally.targets.read(weights, rows, block.keys).items():
            held[name], held[f"{name} keys"] = found, count
        self._share(weights, block, held)
        tally.add_block(weights, rows, block.keys, ends=self._ends(block))
        even = 1 / tally.reach.seen[..., rows].clamp(min=1).to(weights.dtype)
        held["overlap"] = torch.minimum(weights, even[..., None], out=weights).sum(-1)
        for name, found in held.items():
            tally.rows[name][..., rows] = found

    def _ends(self, block: Block) -> bool:
        """Whether the block's last corner lies on the diagonal, and nothing beyond it."""
        last = int(self.tally.reach.n_key - self.tally.reach.n_query + block.rows.stop)
        return self.causal and block.keys.stop == last

    def _first(self, weights: Tensor, block: Block) -> Tensor:
        """Weights of the first key that any query sees."""
        first = self.tally.first
        if first.numel() == 1:
            place = int(first) - block.keys.start
            if 0 <= place < weights.shape[-1]:
                return weights[..., place].clone()
            return weights.new_zeros(weights.shape[:-1])
        place = (first - block.keys.start)[..., None, None]
        there = (place >= 0) & (place < weights.shape[-1])
        index = place.clamp(0, weights.shape[-1] - 1).expand(*weights.shape[:3], 1)
        picked: Tensor = weights.gather(-1, index)[..., 0] * there[..., 0]
        return picked

    def _distances(self, weights: Tensor, block: Block, mass: Tensor) -> tuple[Tensor, Tensor]:
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
        before = mass - square.sum(-1) - beyond
        return far + (places - own) * (before - beyond), later + beyond

    def _share(self, weights: Tensor, block: Block, held: dict[str, Tensor]) -> None:
        """Scale rows to what a learned sink leaves them; empty those that do not count."""
        usable = self.tally.usable[..., block.rows]
        share = usable.to(weights.dtype)
        sinks = self.tally.scores.sinks
        if sinks is not None:
            sinks = sinks if sinks.shape[-1] == 1 else sinks[..., block.rows]
            held["share"] = _keys_share(held["peak"], held["top"], sinks.to(weights.dtype))
            share = share * held["share"]
        elif bool(usable.all()):
            return
        weights.mul_(share[..., None])
        if not bool(usable.all()):  # also where they hold NaN
            weights.masked_fill_(~usable[..., None], 0)


def _keys_share(peak: Tensor, top: Tensor, sinks: Tensor) -> Tensor:
    """Share of a row that a learned sink leaves to the keys, from the row's log-sum-exp."""
    return torch.sigmoid(peak - top.log() - sinks)


def _product(weights: Tensor, vector: Tensor) -> Tensor:
    """Multiply a vector along the keys."""
    return torch.mv(weights.view(-1, weights.shape[-1]), vector).view(weights.shape[:-1])
