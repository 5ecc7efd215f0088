"""`PatternEvidence` from a tally, as `collect_evidence` makes it from weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attncheck.evaluate.chances import Chances, total
from attncheck.evaluate.lines import as_columns, as_offsets, clear_lines
from attncheck.evaluate.measures import sees_first
from attncheck.evaluate.segments import measure_segments
from attncheck.evaluate.tally import Tally
from attncheck.patterns import PatternEvidence
from attncheck.patterns.sums import Sums, no_lines

__all__ = ["evidence_of"]


def evidence_of(tally: Tally, *, causal: bool) -> PatternEvidence:
    """Turn what a walk found into evidence, summed over its sequences."""
    usable, reach, rows, chances = tally.usable, tally.reach, tally.rows, tally.chances
    alone = None if bool(usable.all()) else ~usable

    def kept(held: Tensor) -> Tensor:
        held = held.double()
        return held if alone is None else held.masked_fill(alone, 0)

    share = kept(rows["share"])
    mass, square = kept(rows["mass"]) * share, (kept(rows["norm"]) * share).square()
    spread = ((square - chances.inverse) * chances.inverse).clamp_(min=0)
    if alone is not None:
        spread *= usable
    names = [name for name in tally.targets.names if name != "block"]
    templates, resting = _by_token(tally, names, share, spread)
    offsets, beside = no_lines(usable.shape[1]), Sums(*(np.zeros(usable.shape[1]),) * 4)
    if chances.diagonals is not None:
        varied = reach.by_offset(spread)
        offsets = as_offsets(
            tally.by_offset(), chances.diagonals, varied, n_query=reach.n_query, causal=causal
        )
        clear = clear_lines(tally, chances)
        segments = None
        if "block" in tally.targets.names:
            assert tally.targets.marks.segments is not None
            segments = kept(rows["block"]) * share, rows["block keys"], tally.targets.marks.segments
        templates["block"], beside = measure_segments(tally, (mass, square), clear, segments)
    entropy = share * (kept(tally.entropy) - share.clamp(min=1e-300).log())
    count, inverse, capacity = chances.sums
    return PatternEvidence(
        rows=count,
        inverse=inverse,
        square=total(square),
        entropy=total(entropy),
        capacity=capacity,
        overlap=total(kept(rows["overlap"])),
        positional=chances.diagonals is not None,
        causal=causal,
        spans=chances.spans,
        offsets=offsets,
        columns=as_columns(tally.columns, chances.columns, reach.by_key(spread), reach),
        templates=templates,
        resting=resting,
        beside=beside,
    )


def _by_token(
    tally: Tally, names: list[str], share: Tensor, spread: Tensor
) -> tuple[dict[str, Sums], dict[str, Sums]]:
    """Sums over the rows that have a target of a pattern, by pattern.

    Args:
        tally: What a walk found.
        names: Patterns that select keys by their tokens.
        share: What learned sinks leave to the keys, 0 in rows that do not count.
        spread: Variance of the weight on a key, 0 in rows that do not count.

    Returns:
        Of the targets; and of the first key, unless it is one.
    """
    if not names:
        return {}, {}
    usable = tally.usable
    counts = torch.stack([tally.rows[f"{name} keys"] for name in names]).double()
    mass = torch.stack([tally.rows[name] for name in names]).double()
    first = torch.stack([tally.targets.first_is_target(name, tally.first) for name in names])
    rests = (counts > 0) & sees_first(tally) & ~first
    at_first = (tally.rows["first"].double().masked_fill(~usable, 0) * share) * rests
    each = _Selected(tally.chances, spread)
    found = each.sums(mass.masked_fill_(~usable, 0).mul_(share), counts)
    rested = each.sums(at_first, rests.double())
    return dict(zip(names, found, strict=True)), dict(zip(names, rested, strict=True))


@dataclass(frozen=True, eq=False)
class _Selected:
    """Sums what rows have on selected keys.

    Attributes:
        chances: What chance says of the rows.
        spread: Variance of the weight on a key, ``(batch, head, query)``.
    """

    chances: Chances
    spread: Tensor

    def sums(self, mass: Tensor, selected: Tensor) -> list[Sums]:
        """Sum over rows, selection by selection.

        Args:
            mass: Weight on the selected keys, ``(selection, batch, head, query)``.
            selected: Number of selected keys, of the same shape.
        """
        per_row = (
            mass,
            self.chances.even * selected,
            self.chances.rows * (selected > 0),
            self.spread * selected,
        )
        found = torch.stack([held.sum((1, 3)) for held in per_row], 1).cpu().numpy()
        return [Sums(*each) for each in found]
