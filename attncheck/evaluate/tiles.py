"""The fused evaluator on a GPU: Triton kernels that leave behind the `Tally` of the blocked walk.

See `attncheck.kernels` for what they do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from attncheck.attention import LayerAttention, QueryKey
from attncheck.evaluate.operands import Operands
from attncheck.evaluate.reach import Reach
from attncheck.evaluate.scores import Scores, added
from attncheck.evaluate.tally import Tally
from attncheck.evaluate.targets import Targets
from attncheck.evaluate.trial import departure
from attncheck.kernels import missing
from attncheck.kernels.launch import KernelError, Tiles, launch, next_power, tiles_for
from attncheck.patterns.grid import Marks

__all__ = ["tiled_sequences", "unfit_for_tiles", "walk_tiles"]

NUMBERS: Final = 1 << 26
"""Numbers of rows that are held together, unless one sequence has more."""

PROGRAMS: Final = (1 << 16) - 1
"""Heads of all sequences that a launch takes."""

LARGEST: Final = 256
"""Size of the largest heads."""

_VERDICTS: Final[dict[tuple[Any, ...], str | None]] = {}
"""Of each form of kernels that was tried: why it can't be used; None where it found what torch
finds."""

TARGETS: Final = {
    "DUPLICATE": "duplicate_token",
    "INDUCTION": "induction",
    "DELIMITER": "delimiter",
    "BLOCK": "block",
}
"""What kernels call the patterns of tokens and segments."""


def unfit_for_tiles(layer: LayerAttention) -> str | None:
    """Say why the kernels can't read a layer on a GPU; None if they may be tried.

    A mask with holes is found only by reading it: `walk_tiles` refuses it.
    """
    record = layer.query_key
    if record is None:
        return "kernels multiply query and key, and weights are held"
    if record.computed_in == torch.float64:
        return "kernels are float32, not float64"
    if any(True for _ in added(record)):
        return "kernels add nothing to scores"
    if record.scale <= 0:
        return f"kernels need a scale above 0, not {record.scale}"
    if record.query.shape[-1] > LARGEST:
        return f"heads of {record.query.shape[-1]}: kernels take up to {LARGEST}"
    return missing()


def tiled_sequences(layer: LayerAttention) -> Iterator[slice]:
    """Yield the sequences that are read together."""
    batch, heads, n_query, n_key = layer.shape
    step = min(NUMBERS // (24 * heads * max(1, n_query + n_key)), PROGRAMS // heads)
    step = max(1, step)
    for start in range(0, batch, step):
        yield slice(start, min(start + step, batch))


def walk_tiles(
    layer: LayerAttention, reach: Reach, marks: Marks, valid: Tensor, batch: slice
) -> Tally:
    """Read some sequences; arguments and result are those of the blocked `walk`.

    Raises:
        ValueError: Rows have hidden keys between visible ones.
        KernelError: The kernels can't be built for this device.
    """
    if reach.mask is not None:
        raise ValueError("reach: kernels read rows that see one stretch of keys")
    record = layer.query_key
    assert record is not None
    scores = Scores.of(record, batch)
    targets = Targets(marks, reach, layer.positional)
    usable = valid & (reach.seen >= 2)
    tally = Tally.empty(scores, targets, valid, usable, torch.float32)
    if not valid.numel() or not reach.n_key:
        return tally
    operands = Operands.of(record, scores, batch)
    *larger, smallest = tiles_for(operands.query.shape[-1], operands.query.dtype)
    for tiles in larger:
        with suppress(KernelError):
            _Reading(tally, operands, tiles, layer.causal).run(record, batch)
            return tally
    _Reading(tally, operands, smallest, layer.causal).run(record, batch)
    return tally


@dataclass(frozen=True)
class _Reading:
    """A reading of some sequences by kernels.

    Attributes:
        tally: Where to write.
        operands: What scores are made of.
        tiles: How they are cut.
        causal: Whether no query sees a later key.
    """

    tally: Tally
    operands: Operands
    tiles: Tiles
    causal: bool

    def run(self, record: QueryKey, batch: slice) -> None:
        """Read rows, then add up by key, distance and cell.

        Raises:
            KernelError: A kernel can't be built, or does not find what torch finds.
        """
        verdict = _VERDICTS.get(self._form)
        if verdict is not None:
            raise KernelError(verdict)
        try:
            self._run()
            if self._form not in _VERDICTS:
                self._try(record, batch)
        except KernelError as error:
            _VERDICTS[self._form] = str(error)
            raise

    def _run(self) -> None:
        peaks = self._read_rows()
        if any(number >= 0 for number in self._asked.values()):
            self._count_targets()
        tops, sinks = self.tally.rows["top"], self.operands.scores.sinks
        if sinks is not None:
            share = torch.sigmoid(self.tally.rows["peak"] - tops.log() - sinks.float())
            self.tally.rows["share"].copy_(share)
            tops = tops * share
        self._add_up(peaks.masked_fill_(~self.tally.usable, 1e30), tops.contiguous())

    @cached_property
    def _form(self) -> tuple[Any, ...]:
        """What kernels were compiled for."""
        tally, operands = self.tally, self.operands
        held = (operands.query, operands.key)
        asked = tuple(number >= 0 for number in self._asked.values())
        return (
            *(tensor.dtype for tensor in held),
            *(tensor.data_ptr() % 16 for tensor in held),
            *(tuple(step % 16 for step in tensor.stride()) for tensor in held),
            *(operands.query.device, self.tiles, self.causal, self._blocks, self._leaves),
            *operands.compiled_for.values(),
            *(tally.offsets is None, tally.grid.step),
            *asked,
        )

    def _try(self, record: QueryKey, batch: slice) -> None:
        """Hold what was found against torch, the first time that kernels run in this form."""
        try:
            differs = departure(self.tally, record, batch)
        except torch.OutOfMemoryError:  # no room for a trial: the next layer may have it
            return
        if differs is not None:
            raise KernelError(f"on this device the kernels find another {differs} than torch")
        _VERDICTS[self._form] = None

    @cached_property
    def _stretches(self) -> tuple[Tensor, Tensor]:
        """First visible key of each row, and one behind the last, int32."""
        reach = self.tally.reach
        return reach.low.to(torch.int32).contiguous(), reach.high.to(torch.int32).contiguous()

    @cached_property
    def _edges(self) -> Tensor:
        return _edges(self.tally.reach, self.tiles.rows)

    @property
    def _blocks(self) -> int:
        """Blocks of rows that a kernel is compiled for."""
        return max(64, next_power(self._edges.shape[-1]))

    @cached_property
    def _leaves(self) -> bool:
        """Whether some rows don't count."""
        return not bool(self.tally.valid.all())

    @cached_property
    def _steps(self) -> tuple[int, int]:
        """From sequence to sequence and from head to head of `_stretches`, in rows of them."""
        batch, heads = self.tally.reach.low.shape[:2]
        return 0 if batch == 1 else heads, 0 if heads == 1 else 1

    @cached_property
    def _asked(self) -> dict[str, int]:
        """Where in the table a kernel writes what tokens and segments select; -1: nowhere."""
        places = {name: number for number, name in enumerate(self.tally.rows)}
        return {word: places.get(name, -1) for word, name in TARGETS.items()}

    @cached_property
    def _marks(self) -> tuple[list[Tensor], list[int]]:
        """Tokens, segments and delimiters, and the steps from sequence to sequence."""
        marks = self.tally.targets.marks
        every = (
            (marks.tokens, torch.int32),
            (marks.segments, torch.int32),
            (marks.delimiters, torch.uint8),
        )
        nothing = self._stretches[0]
        return (
            [nothing if held is None else held.to(kind).contiguous() for held, kind in every],
            [0 if held is None or len(held) == 1 else held.shape[1] for held, _ in every],
        )

    def _read_rows(self) -> Tensor:
        """Run the first pass; return the largest score of each row in units of log 2."""
        from attncheck.kernels.rows import read_rows

        tally, operands = self.tally, self.operands
        (low, high), (of_keys, steps_of_keys), edges = self._stretches, self._marks, self._edges
        batch, heads, n_query, _ = operands.query.shape
        n_blocks = edges.shape[-1]
        first = tally.first.to(torch.int32).expand(low.shape[:2]).contiguous()
        counts = tally.valid.contiguous().view(torch.uint8)
        peaks = torch.empty_like(tally.rows["peak"])
        launch(
            read_rows,
            (n_blocks, batch * heads),
            *(operands.query, operands.key, operands.key_heads, low, high, edges, first, counts),
            *of_keys,
            *(tally.table, peaks),
            *operands.units,
            *(heads, n_query, tally.reach.n_key, n_blocks),
            *operands.strides,
            *self._steps,
            *(edges.stride(0), tally.table.stride(0)),
            *steps_of_keys,
            DISTANCES=tally.offsets is not None,
            CAUSAL=self.causal,
            **self._asked,
            **operands.compiled_for,
            **self.tiles.options,
        )
        return peaks

    def _count_targets(self) -> None:
        """Count targets once for all heads that see the same."""
        from attncheck.kernels.counts import count_targets

        tally, (low, high), (of_keys, steps_of_keys) = self.tally, self._stretches, self._marks
        tokens = [len(held) for held, step in zip(of_keys, steps_of_keys, strict=True) if step]
        batch, heads = max([len(low), *tokens]), low.shape[1]
        n_query = tally.reach.n_query
        found = torch.zeros(len(TARGETS), batch, heads, n_query, device=low.device)
        places = {word: n if self._asked[word] >= 0 else -1 for n, word in enumerate(TARGETS)}
        launch(
            count_targets,
            (-(-n_query // 64), batch * heads),
            *(low, high, *of_keys, found),
            *(heads, n_query, tally.reach.n_key),
            *self._steps,
            found.stride(0),
            *steps_of_keys,
            ROWS=64,
            KEYS=128,
            **places,
        )
        for name, counts in zip(TARGETS.values(), found, strict=True):
            if name in tally.targets.names:
                tally.rows[f"{name} keys"].copy_(counts.expand(tally.valid.shape))

    def _add_up(self, peaks: Tensor, tops: Tensor) -> None:
        """Run the second pass.

        Args:
            peaks: Largest score of each row in units of log 2, 1e30 where it does not count.
            tops: Largest weight of each row, as a share of all that softmax ran over.
        """
        from attncheck.kernels.sums import ONE, add_up

        tally, operands, grid, tiles = self.tally, self.operands, self.tally.grid, self.tiles
        (low, high), edges, reach = self._stretches, self._edges, self.tally.reach
        batch, heads, n_query, _ = operands.query.shape
        n_key, n_blocks = reach.n_key, edges.shape[-1]

        def room(*size: int) -> Tensor:
            return torch.zeros(batch, heads, *size, dtype=torch.int64, device=peaks.device)

        columns, offsets, overlap = room(n_key), room(n_key + n_query - 1), room(n_query)
        cells = room(grid.n_rows, grid.n_keys)
        even = (1 / reach.seen.clamp(min=1).to(torch.float32)).contiguous()
        # Diagonals of tiles, numbered by the tile of keys that they meet beside the first rows.
        last = (n_key - 1 + grid.lead) // tiles.keys
        if self.causal:
            last = min(last, (tiles.rows - 1 + n_key - n_query + grid.lead) // tiles.keys)
        n_diagonals = last + (n_blocks - 1) * (tiles.rows // tiles.keys) + 1
        launch(
            add_up,
            (n_diagonals, batch * heads),
            *(operands.query, operands.key, operands.key_heads, low, high, edges, even),
            *(peaks, tops, columns, offsets, overlap, cells),
            *operands.units,
            *(heads, n_query, n_key, n_blocks, grid.lead, grid.n_keys, last),
            *operands.strides,
            *self._steps,
            *(edges.stride(0), grid.n_rows * grid.n_keys),
            STEP=grid.step,
            POSITIONAL=tally.offsets is not None,
            BLOCKS=self._blocks,
            LEAVES=self._leaves,
            **operands.compiled_for,
            **tiles.options,
        )
        # A whole number holds no NaN: what rows of NaN went into is told from the rows.
        lost = tops.isnan() & tally.usable
        nowhere = lost.any(-1, keepdim=True)

        def numbers(counted: Tensor, gone: Tensor) -> Tensor:
            return (counted.double() / ONE).masked_fill_(gone, torch.nan)

        tally.columns.copy_(numbers(columns, nowhere))
        tally.rows["overlap"].copy_(numbers(overlap, lost))
        if tally.offsets is not None and tally.cells is not None:
            tally.offsets.copy_(numbers(offsets, nowhere))
            tally.cells.copy_(numbers(cells, nowhere[..., None]))


def _edges(reach: Reach, rows: int) -> Tensor:
    """Least and largest ``low``, least and largest ``high`` of blocks of rows.

    Rows that see nothing don't count; a block of such rows has edges that hold nothing.

    Returns:
        int32 ``(4, batch or 1, head or 1, block)``.
    """
    sees, n_key, beyond = reach.seen > 0, reach.n_key, -reach.n_query % rows

    def by_block(held: Tensor, other: int) -> Tensor:
        held = F.pad(torch.where(sees, held, other), (0, beyond), value=other)
        return held.view(*held.shape[:-1], -1, rows)

    sides = (
        by_block(reach.low, n_key).amin(-1),
        by_block(reach.low, 0).amax(-1),
        by_block(reach.high, n_key).amin(-1),
        by_block(reach.high, 0).amax(-1),
    )
    return torch.stack(sides).to(torch.int32)
