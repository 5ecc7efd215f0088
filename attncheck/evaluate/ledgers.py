"""`Books`: what compiled loops read and write for some sequences, and the `Tally` that it makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from attncheck.compiled.ledger import NUMBERS, Keys, Ledger, Sight, places_before, ramp_of
from attncheck.evaluate.tally import Source, Tally
from attncheck.evaluate.targets import Targets
from attncheck.patterns.cells import CellGrid

__all__ = ["Books"]

NAMES: Final = {
    "duplicate": "duplicate_token",
    "duplicate keys": "duplicate_token keys",
}
"""Numbers whose name in a tally is another."""


@dataclass(frozen=True, eq=False)
class Books:
    """Arrays of some sequences; what a loop needs of one of them is a view.

    Attributes:
        targets: What tokens and segments select; what the rows see.
        valid: Rows that carry attention, bool ``(batch, head, query)``; loops may change it.
        sights: What rows see, by sequence; all heads.
        keys: What is known of the keys, by sequence.
        grid: The coarse grid.
        numbers: Numbers of each row, ``(batch, head, number, query)``; those of tokens and segments
            where there are any.
        columns: ``(part, batch, head, key)``: parts are rows walked beside each other.
        offsets: ``(part, batch, head, offset)``.
        cells: ``(batch, head, row cell, key cell)``.
    """

    targets: Targets
    valid: Any
    sights: list[Sight]
    keys: list[Keys]
    grid: CellGrid
    numbers: Any
    columns: Any
    offsets: Any
    cells: Any

    @classmethod
    def open(cls, targets: Targets, valid: Tensor, dtype: torch.dtype, parts: int = 1) -> Books:
        """Make room.

        Args:
            targets: What tokens and segments select; what the rows see.
            valid: Rows that carry attention, bool ``(batch, head, query)``.
            dtype: Of the numbers.
            parts: Into how many parts rows are cut that are walked beside each other.
        """
        reach = targets.reach
        batch, heads, n_query = valid.shape
        grid = CellGrid(n_query, reach.n_key)
        held = np.array(valid.numpy(), order="C")
        size = len(NUMBERS) if targets.names else len(_ALWAYS)
        numbers = _zeros(batch, heads, size, n_query, dtype=dtype)
        numbers[:, :, [NUMBERS.index("top"), NUMBERS.index("share")]] = 1
        return cls(
            targets,
            held,
            [_sight(targets, held, sequence) for sequence in range(batch)],
            [_keys(targets, sequence) for sequence in range(batch)],
            grid,
            numbers,
            _zeros(parts, batch, heads, reach.n_key, dtype=torch.float64),
            _zeros(parts, batch, heads, reach.n_key + n_query - 1, dtype=torch.float64),
            _zeros(batch, heads, grid.n_rows, grid.n_keys),
        )

    def sight(self, sequence: int, head: slice) -> Sight:
        """What rows of some heads see."""
        held = self.sights[sequence]
        low, high, valid = held.low[head], held.high[head], held.valid[head]
        return held._replace(low=low, high=high, valid=valid, first=held.first[head])

    def ledger(self, sequence: int, head: slice, part: int = 0) -> Ledger:
        """Where some heads of a sequence are written; with memory of its own to add rows in."""
        columns, offsets = self.columns[part, sequence, head], self.offsets[part, sequence, head]
        return Ledger(
            numbers=self.numbers[sequence, head],
            columns=columns,
            offsets=offsets,
            cells=self.cells[sequence, head],
            by_key=_zeros(3, self.grid.n_keys * self.grid.step),
            by_offset=_zeros(offsets.shape[-1]),
            step=self.grid.step,
            lead=self.grid.lead,
        )

    def tally(self, source: Source) -> Tally:
        """Return what was written."""
        targets, reach = self.targets, self.targets.reach
        table = torch.from_numpy(self.numbers).movedim(2, 0)
        valid = torch.from_numpy(self.valid)
        positional = targets.positional
        return Tally(
            source,
            targets,
            valid,
            valid & (reach.seen >= 2),
            first=reach.first,
            names=tuple(NAMES.get(name, name) for name in NUMBERS[: len(table)]),
            table=table,
            columns=torch.from_numpy(self.columns.sum(0)),
            offsets=torch.from_numpy(self.offsets.sum(0)) if positional else None,
            cells=torch.from_numpy(self.cells) if positional else None,
            grid=self.grid,
            looped=True,
        )


_ALWAYS: Final = frozenset(NUMBERS[: NUMBERS.index("duplicate")])


def _zeros(*size: int, dtype: torch.dtype = torch.float32) -> Any:
    """Make room through torch, whose count of memory then has it.

    It is filled without torch, whose threads would wait for more work, and hold up those here.
    """
    room = torch.empty(size, dtype=dtype).numpy()
    room.fill(0)
    return room


def _sight(targets: Targets, valid: Any, sequence: int) -> Sight:
    reach = targets.reach
    shape = valid.shape[1:]

    def own(held: Tensor, *size: int) -> Any:
        part = held[sequence if held.shape[0] > 1 else 0]
        return np.array(np.broadcast_to(part.numpy(), size), order="C")

    return Sight(
        low=own(reach.low, *shape),
        high=own(reach.high, *shape),
        valid=valid[sequence],
        first=own(reach.first, shape[0]),
        position=reach.n_key - reach.n_query,
        positional=targets.positional,
    )


def _keys(targets: Targets, sequence: int) -> Keys:
    reach, marks, names = targets.reach, targets.marks, targets.names

    def own(held: Tensor | None, name: str, dtype: Any) -> Any:
        if held is None or name not in names:
            return np.zeros(0, dtype)
        return held[sequence if len(held) > 1 else 0].numpy().astype(dtype)

    tokens = own(marks.tokens, "induction", np.int32)
    before = np.concatenate([np.full(1, -1, np.int32), tokens[:-1]]) if len(tokens) else tokens
    return Keys(
        ramp_of(reach.n_query, reach.n_key, targets.positional),
        tokens,
        before,
        *places_before(tokens),
        own(marks.delimiters, "delimiter", np.float32),
        own(marks.segments, "block", np.int32),
    )
