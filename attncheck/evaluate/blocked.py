"""The blocked evaluator: profiles from query and key, at linear memory, block by block."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any, Final

from torch import Tensor

from attncheck.attention import LayerAttention
from attncheck.attention.quiet import quiet
from attncheck.evaluate.assemble import assemble
from attncheck.evaluate.fused import sequences_together, walk_fused
from attncheck.evaluate.reach import Reach, reach_of
from attncheck.evaluate.tally import Tally
from attncheck.evaluate.tiles import tiled_sequences, walk_tiles
from attncheck.evaluate.walk import chunks, walk
from attncheck.patterns.grid import Marks, read_marks
from attncheck.profile import LayerProfile

__all__ = ["profile_blocked", "tallies_of", "valid_rows"]

HOLES: Final = (
    "blocked: query and key are held; not fused: rows have hidden keys between visible ones"
)
"""What a report says where fused was asked for and could not be."""


def profile_blocked(
    layer: LayerAttention,
    tokens: Any = None,
    *,
    segment_ids: Any = None,
    delimiters: Collection[Any] | None = None,
    fused: bool = False,
) -> LayerProfile:
    """Profile the heads of one layer from its query and key; its weights are never held.

    Memory grows with the number of queries and keys, not with their product. What causality, a
    window or padding hides from a whole block of rows is not computed.

    Args:
        layer: A layer whose weights are given as a `QueryKey`, all queries of its call.
        tokens: Strings or ids, ``(key,)`` or ``(batch, key)``; see `profile_layer`.
        segment_ids: Segment of each key, ``(key,)`` or ``(batch, key)``.
        delimiters: Tokens that count as delimiters; default: punctuation and separators.
        fused: Read each block of scores in compiled loops, or on a GPU in kernels, where every
            row sees one stretch of keys; see `attncheck.evaluate.fused` and `.tiles`.

    Raises:
        ValueError: The layer holds weights, or tokens or segments are of the wrong length.

    Example:
        >>> import torch
        >>> from attncheck.attention import QueryKey
        >>> record = QueryKey(torch.zeros(1, 2, 8, 4), torch.zeros(1, 1, 8, 4), (0, 0), 0.5)
        >>> profile = profile_blocked(LayerAttention(record, causal=True))
        >>> profile.value("normalized_entropy").round(6), profile.counts["entropy"]
        (array([1., 1.]), array([8, 8]))
    """
    if layer.query_key is None or layer.queries:
        raise ValueError("layer: the blocked evaluator needs query and key of a whole call")
    crosses = layer.kind == "cross"
    marks = read_marks(
        layer, None if crosses else tokens, None if crosses else segment_ids, delimiters
    )
    with quiet(layer.device.type):
        reach = reach_of(layer)
        found = assemble(layer, tallies_of(layer, reach, marks, fused=fused))
    return replace(found, evaluator=HOLES) if fused and reach.mask is not None else found


def tallies_of(
    layer: LayerAttention, reach: Reach, marks: Marks, *, fused: bool
) -> Iterator[Tally]:
    """Walk a layer, some sequences at a time.

    Args:
        layer: A layer that holds query and key of a whole call.
        reach: What its queries see.
        marks: What is known of its keys.
        fused: Whether compiled loops or kernels read it, if every row sees one stretch of keys.
    """
    valid = valid_rows(layer, reach)
    walk_of, parts = walk, chunks
    if fused and reach.mask is None:
        on_cpu = layer.device.type == "cpu"
        walk_of = walk_fused if on_cpu else walk_tiles
        parts = sequences_together if on_cpu else tiled_sequences
    for batch in parts(layer):
        yield walk_of(layer, reach.part(batch), marks.part(batch), valid[batch], batch)


def valid_rows(layer: LayerAttention, reach: Reach) -> Tensor:
    """Which rows carry attention, as `LayerAttention.sighted_rows` has it, from stretches alone."""
    valid = layer.sighted
    if valid is None:
        valid = reach.seen > 0
        if layer.positional and layer.mask is not None:
            valid = valid & reach.seen_keys[..., reach.positions.clamp(min=0)]
    return valid.expand(layer.shape[:3])
