"""`RowSums`: what the rows of a tally add up to, measures and evidence, each row read once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from attncheck.compiled.ledger import MEASURES
from attncheck.evaluate.chances import Chances
from attncheck.evaluate.measures import Totals, measures_of, sees_first
from attncheck.evaluate.tally import Tally
from attncheck.patterns.sums import Array, Sums, total

if TYPE_CHECKING:
    from attncheck.compiled.sums import Rows

__all__ = ["RowSums", "sum_rows"]


@dataclass(frozen=True, eq=False)
class RowSums:
    """Sums over rows, and what is left of each row for those who ask where its weight lies.

    Attributes:
        mass: Weight of each row, 0 in rows that are not usable, float64 ``(batch, head, query)``.
        square: Squared weight, of the same kind.
        variance: Variance of the weight on a visible key if the row were shuffled, likewise.
        totals: Sums over usable rows, ``(head,)``: of `square`, ``"entropy"`` and ``"overlap"``.
        measures: Of every measure but Gini, which needs its rows sorted.
        templates: Over rows that have a target of a pattern of tokens, by pattern.
        resting: Of the first key in these rows, unless it is a target, by pattern.
    """

    mass: Tensor
    square: Tensor
    variance: Tensor
    totals: dict[str, Array]
    measures: dict[str, Totals]
    templates: dict[str, Sums]
    resting: dict[str, Sums]


def sum_rows(tally: Tally) -> RowSums:
    """Sum what a walk found of each row: in a compiled loop, where loops walked."""
    return _in_loop(tally) if tally.looped else _by_torch(tally)


def _by_torch(tally: Tally) -> RowSums:
    """Sum by operations on whole tables."""
    rows, chances = tally.rows, tally.chances
    alone = None if bool(tally.usable.all()) else ~tally.usable

    def kept(held: Tensor) -> Tensor:
        held = held.double()
        return held if alone is None else held.masked_fill(alone, 0)

    share = kept(rows["share"])
    mass, square = kept(rows["mass"]) * share, (kept(rows["norm"]) * share).square()
    variance = ((square - chances.inverse) * chances.inverse).clamp_(min=0)
    if alone is not None:
        variance *= tally.usable
    entropy = share * (kept(tally.entropy) - share.clamp(min=1e-300).log())
    templates, resting = _by_token(tally, share, variance)
    return RowSums(
        mass,
        square,
        variance,
        {
            "square": total(square),
            "entropy": total(entropy),
            "overlap": total(kept(rows["overlap"])),
        },
        measures_of(tally),
        templates,
        resting,
    )


def _by_token(
    tally: Tally, share: Tensor, variance: Tensor
) -> tuple[dict[str, Sums], dict[str, Sums]]:
    """Sums over the rows that have a target of a pattern of tokens, and of the first key there.

    Args:
        tally: What a walk found.
        share: What learned sinks leave to the keys, 0 in rows that do not count.
        variance: Of the weight on a key, 0 in rows that do not count.
    """
    names, usable = tally.targets.tokenwise, tally.usable
    if not names:
        return {}, {}
    counts = torch.stack([tally.rows[f"{name} keys"] for name in names]).double()
    mass = torch.stack([tally.rows[name] for name in names]).double()
    first = torch.stack([tally.targets.first_is_target(name, tally.first) for name in names])
    rests = (counts > 0) & sees_first(tally) & ~first
    at_first = (tally.rows["first"].double() * share).masked_fill(~(rests & usable), 0)
    found = _selected(tally.chances, variance, mass.masked_fill_(~usable, 0).mul_(share), counts)
    rested = _selected(tally.chances, variance, at_first, rests.double())
    return dict(zip(names, found, strict=True)), dict(zip(names, rested, strict=True))


def _selected(chances: Chances, variance: Tensor, mass: Tensor, selected: Tensor) -> list[Sums]:
    """Sum what rows have on selected keys, selection by selection.

    Args:
        chances: What chance says of the rows.
        variance: Of the weight on a key, ``(batch, head, query)``.
        mass: Weight on the selected keys, ``(selection, batch, head, query)``.
        selected: Number of selected keys, of the same shape.
    """
    per_row = (mass, chances.even * selected, chances.rows * (selected > 0), variance * selected)
    found = torch.stack([held.sum((1, 3)) for held in per_row], 1).cpu().numpy()
    return [Sums(*each) for each in found]


def _in_loop(tally: Tally) -> RowSums:
    """Sum in a compiled loop, which reads each row once."""
    from attncheck.compiled import sums as loops

    batch, heads, n_query = tally.valid.shape
    names = tally.targets.tokenwise
    kept = torch.zeros(3, batch, heads, n_query, dtype=torch.float64)
    into = loops.Sums(
        measures=np.zeros((heads, len(MEASURES), 3)),
        totals=np.zeros((heads, 3)),
        selected=np.zeros((heads, len(loops.TOKENWISE), 2, 4)),
        held=kept.numpy(),
    )
    into.measures[..., 2] = -np.inf
    loops.sum_rows(_rows(tally), into)
    mass, square, variance = kept
    totals = zip(("square", "entropy", "overlap"), into.totals.T, strict=True)
    measures = zip(MEASURES, into.measures.transpose(1, 2, 0), strict=True)
    selected = dict(zip(loops.TOKENWISE, into.selected.transpose(1, 2, 3, 0), strict=True))
    return RowSums(
        mass,
        square,
        variance,
        dict(totals),
        {
            name: Totals(added, count.astype(np.int64), most)
            for name, (added, count, most) in measures
        },
        {name: Sums(*selected[name][0]) for name in names},
        {name: Sums(*selected[name][1]) for name in names},
    )


def _rows(tally: Tally) -> Rows:
    """Return the arrays that the loop reads, in the order of memory that it was compiled for."""
    from attncheck.compiled import sums as loops

    reach, targets, source = tally.reach, tally.targets, tally.source
    sink = source.sink_mass(tally.rows["share"].double()).expand(tally.valid.shape)
    tokens = targets.marks.tokens if "induction" in targets.names else None
    delimiters = targets.marks.delimiters
    names = [*loops.READ]
    for name in loops.TOKENWISE:
        names += [name, f"{name} keys"] if name in targets.names else ["", ""]
    return loops.Rows(
        table=_array(tally.table.movedim(0, 2)),
        places=np.array([tally.place(name) for name in names]),
        sink=_array(sink),
        valid=_array(tally.valid),
        usable=_array(tally.usable),
        low=_array(reach.low),
        highest=_array(tally.chances.highest),
        inverse=_array(tally.chances.inverse),
        first=_array(tally.first),
        tokens=np.zeros((0, 0), np.int64) if tokens is None else _array(tokens),
        delimiters=np.zeros((0, 0), np.bool_) if delimiters is None else _array(delimiters),
        memory=np.empty((2, reach.n_query), np.bool_),
        entropy=np.empty(reach.n_query),
        position=reach.n_key - reach.n_query,
        positional=tally.offsets is not None,
        with_sinks=source.sinks is not None,
    )


def _array(held: Tensor) -> Any:
    """Return the numbers in the order of memory that the loop was compiled for."""
    return held.contiguous().numpy()
