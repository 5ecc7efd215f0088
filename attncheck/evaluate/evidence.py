"""`PatternEvidence` from a tally, as `collect_evidence` makes it from weights."""

from __future__ import annotations

import numpy as np

from attncheck.evaluate.lines import as_columns, as_offsets, clear_lines
from attncheck.evaluate.row_sums import RowSums
from attncheck.evaluate.segments import measure_segments
from attncheck.evaluate.tally import Tally
from attncheck.patterns import PatternEvidence
from attncheck.patterns.sums import Sums, no_lines

__all__ = ["evidence_of"]


def evidence_of(tally: Tally, rows: RowSums, *, causal: bool) -> PatternEvidence:
    """Turn what a walk found into evidence, summed over its sequences.

    Args:
        tally: What it found.
        rows: What its rows add up to.
        causal: Whether no query sees a later key.
    """
    reach, chances = tally.reach, tally.chances
    templates = dict(rows.templates)
    n_heads = tally.usable.shape[1]
    offsets, beside = no_lines(n_heads), Sums(*(np.zeros(n_heads),) * 4)
    if chances.diagonals is not None:
        varied = reach.by_offset(rows.variance)
        offsets = as_offsets(
            tally.by_offset, chances.diagonals, varied, n_query=reach.n_query, causal=causal
        )
        clear = clear_lines(tally, chances)
        templates["block"], beside = measure_segments(tally, (rows.mass, rows.square), clear)
    count, inverse, capacity = chances.sums
    return PatternEvidence(
        rows=count,
        inverse=inverse,
        capacity=capacity,
        **rows.totals,
        positional=chances.diagonals is not None,
        causal=causal,
        spans=chances.spans,
        offsets=offsets,
        columns=as_columns(tally.columns, chances.columns, reach.by_key(rows.variance), reach),
        templates=templates,
        resting=rows.resting,
        beside=beside,
    )
