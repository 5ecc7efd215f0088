"""`assemble`: the profile of a layer out of what walks over its sequences left behind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Final

from attncheck.attention import LayerAttention
from attncheck.attention.quiet import quiet
from attncheck.compiled.threads import shares, side_by_side
from attncheck.evaluate.evidence import evidence_of
from attncheck.evaluate.measures import Totals, beside, join, measures_of
from attncheck.evaluate.tally import Tally
from attncheck.patterns import PatternEvidence, join_heads
from attncheck.profile import LayerProfile

__all__ = ["assemble", "describe"]

MANY_ROWS: Final = 1 << 13
"""Rows of all heads from which on threads share what is read of them."""


def assemble(
    layer: LayerAttention, tallies: Iterable[Tally], *, shared: bool = False
) -> LayerProfile:
    """Add up the tallies of a layer's sequences.

    Args:
        layer: The layer.
        tallies: One for each chunk of its sequences, at least one.
        shared: Threads share the heads, as they did in the walk, so that they read in the memory
            that it left them.
    """
    found = [_read(tally, layer, shared) for tally in tallies]
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


def _read(
    tally: Tally, layer: LayerAttention, shared: bool
) -> tuple[PatternEvidence, dict[str, Totals]]:
    """Read evidence and measures; if threads share them and it is worth it, some heads on each."""

    def read(head: slice) -> tuple[PatternEvidence, dict[str, Totals]]:
        part = tally if head == everything else tally.of_heads(head)
        with quiet(layer.device.type):
            return evidence_of(part, causal=layer.causal), measures_of(part)

    everything = slice(0, tally.valid.shape[1])
    if not shared or tally.valid.numel() < MANY_ROWS:
        return read(everything)
    found = side_by_side(read, shares(everything.stop, each=1))
    return (
        join_heads([evidence for evidence, _ in found]),
        beside([measured for _, measured in found]),
    )
