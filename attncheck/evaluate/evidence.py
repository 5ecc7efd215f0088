"""`PatternEvidence` from a tally, as `collect_evidence` makes it from weights."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attncheck.evaluate.lines import Counted, as_columns, as_offsets, clear_lines
from attncheck.evaluate.measures import sees_first
from attncheck.evaluate.segments import measure_segments
from attncheck.evaluate.tally import Tally
from attncheck.patterns import PatternEvidence
from attncheck.patterns.spans import Spans
from attncheck.patterns.sums import Sums, no_lines

__all__ = ["evidence_of"]


def evidence_of(tally: Tally, *, causal: bool) -> PatternEvidence:
    """Turn what a walk found into evidence, summed over its sequences."""
    usable, reach, rows = tally.usable, tally.reach, tally.rows
    use = usable.double()
    inverse = 1 / reach.seen.clamp(min=1).double()

    def kept(held: Tensor) -> Tensor:
        return held.double().masked_fill(~usable, 0)

    share = kept(rows["share"])
    mass, square = kept(rows["mass"]) * share, (kept(rows["norm"]) * share).square()
    spread = ((square - inverse) * inverse).clamp(min=0) * use
    shared = use[:, :1] if bool((usable == usable[:, :1]).all()) else use
    per_row = shared, shared * inverse, spread
    columns = Counted(*(reach.by_key(held) for held in per_row))
    templates = {
        name: _selected(tally, name, share, per_row)
        for name in tally.targets.names
        if name != "block"
    }
    offsets, beside = no_lines(usable.shape[1]), Sums(*(np.zeros(usable.shape[1]),) * 4)
    if tally.offsets is not None:
        diagonals = Counted(*(reach.by_offset(held) for held in per_row))
        offsets = as_offsets(tally.by_offset(), diagonals, n_query=reach.n_query, causal=causal)
        clear = clear_lines(tally, columns, diagonals)
        segments = None
        if "block" in tally.targets.names:
            assert tally.targets.marks.segments is not None
            segments = kept(rows["block"]) * share, rows["block keys"], tally.targets.marks.segments
        templates["block"], beside = measure_segments(tally, (mass, square), clear, segments)
    entropy = share * (kept(tally.entropy) - share.clamp(min=1e-300).log())
    return PatternEvidence(
        rows=_total(use),
        inverse=_total(use * inverse),
        square=_total(square),
        entropy=_total(entropy),
        capacity=_total(reach.seen.clamp(min=1).double().log() * use),
        overlap=_total(kept(rows["overlap"])),
        positional=tally.offsets is not None,
        causal=causal,
        spans=_spans(tally),
        offsets=offsets,
        columns=as_columns(tally.columns, columns, tally.first),
        templates=templates,
        resting={
            name: _resting(tally, name, share, per_row) for name in templates if name != "block"
        },
        beside=beside,
    )


def _selected(
    tally: Tally, name: str, share: Tensor, per_row: tuple[Tensor, Tensor, Tensor]
) -> Sums:
    """Sums of a pattern over the rows that have a target."""
    mass = tally.rows[name].double().masked_fill(~tally.usable, 0) * share
    return _sums(mass, tally.rows[f"{name} keys"].double(), per_row)


def _resting(
    tally: Tally, name: str, share: Tensor, per_row: tuple[Tensor, Tensor, Tensor]
) -> Sums:
    """Sums of the first key over the rows that have a target, unless it is one."""
    rests = tally.rows[f"{name} keys"] > 0
    rests = rests & sees_first(tally) & ~tally.targets.first_is_target(name, tally.first)
    mass = tally.rows["first"].double().masked_fill(~(tally.usable & rests), 0) * share
    return _sums(mass, rests.double(), per_row)


def _sums(mass: Tensor, selected: Tensor, per_row: tuple[Tensor, Tensor, Tensor]) -> Sums:
    use, chance, variance = per_row
    return Sums(
        mass=_total(mass),
        chance=_total(chance * selected),
        rows=_total(use * (selected > 0)),
        variance=_total(variance * selected),
    )


def _total(rows: Tensor) -> NDArray[np.float64]:
    """Sum ``(batch, head, row)`` to ``(head,)``."""
    return np.asarray(rows.sum((0, 2), dtype=torch.float64).cpu().numpy())


def _spans(tally: Tally) -> Spans:
    seen = tally.reach.seen_keys
    end = tally.reach.n_key - seen.byte().flip(-1).argmax(-1)
    return Spans.within(tally.usable, tally.reach.positions, tally.first, end)
