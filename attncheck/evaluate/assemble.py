"""`assemble`: the profile of a layer out of what walks over its sequences left behind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from functools import reduce
from typing import Final

from attncheck.attention import LayerAttention
from attncheck.attention.quiet import quiet
from attncheck.compiled.threads import on_one_thread
from attncheck.evaluate.evidence import evidence_of
from attncheck.evaluate.measures import Totals, join
from attncheck.evaluate.row_sums import sum_rows
from attncheck.evaluate.tally import Tally
from attncheck.patterns import PatternEvidence
from attncheck.profile import LayerProfile

__all__ = ["assemble", "describe"]

FEW_ROWS: Final = 1 << 16
"""Rows of all heads up to which what is read of them is read on one thread."""


def assemble(layer: LayerAttention, tallies: Iterable[Tally]) -> LayerProfile:
    """Add up the tallies of a layer's sequences.

    Args:
        layer: The layer.
        tallies: One for each chunk of its sequences, at least one.
    """
    found = [_read(tally, layer) for tally in tallies]
    evidence = reduce(PatternEvidence.merge, (evidence for evidence, _ in found))
    return describe(layer, join([measured for _, measured in found]), evidence)


def describe(
    layer: LayerAttention, totals: Mapping[str, Totals], evidence: PatternEvidence
) -> LayerProfile:
    """Put what was measured under the name of its layer."""
    return LayerProfile(
        name=layer.name,
        index=layer.index,
        call=layer.call,
        kind=layer.kind,
        backend=layer.backend,
        causal=layer.causal,
        dtype=layer.dtype_name,
        heads=layer.heads,
        n_kv_heads=layer.n_key_value_heads,
        sums={name: held.sums for name, held in totals.items()},
        counts={name: held.counts for name, held in totals.items()},
        maxima={name: held.maxima for name, held in totals.items()},
        evidence=evidence,
    )


def _read(tally: Tally, layer: LayerAttention) -> tuple[PatternEvidence, dict[str, Totals]]:
    few = layer.device.type == "cpu" and tally.valid.numel() <= FEW_ROWS
    with quiet(layer.device.type), on_one_thread() if few else nullcontext():
        rows = sum_rows(tally)
        return evidence_of(tally, rows, causal=layer.causal), rows.measures
