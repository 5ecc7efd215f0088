"""Profiles of given weights by compiled loops: one pass over the weights, all measures."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attncheck.attention import LayerAttention
from attncheck.attention.quiet import quiet
from attncheck.attention.reading import read_heads
from attncheck.evaluate.assemble import assemble
from attncheck.evaluate.blocked import valid_rows
from attncheck.evaluate.ledgers import Books
from attncheck.evaluate.reach import reach_of
from attncheck.evaluate.targets import Targets
from attncheck.patterns.grid import read_marks
from attncheck.profile import LayerProfile

__all__ = ["profile_given"]


def profile_given(
    layer: LayerAttention,
    tokens: Any = None,
    *,
    segment_ids: Any = None,
    delimiters: Collection[Any] | None = None,
) -> LayerProfile | None:
    """Profile the heads of one layer from its weights, each of which is read once.

    Args:
        layer: Weights of every query of a call, on a CPU, float32 or half precision.
        tokens: Strings or ids, ``(key,)`` or ``(batch, key)``; see `profile_layer`.
        segment_ids: Segment of each key, ``(key,)`` or ``(batch, key)``.
        delimiters: Tokens that count as delimiters; default: punctuation and separators.

    Returns:
        None where something needs a second look: weights that are negative, not finite or on
        hidden keys, or hidden keys between visible ones.

    Raises:
        ValueError: Tokens or segments are of the wrong length.
    """
    crosses = layer.kind == "cross"
    marks = read_marks(
        layer, None if crosses else tokens, None if crosses else segment_ids, delimiters
    )
    with quiet("cpu"):
        reach = reach_of(layer)
        if reach.mask is not None:
            return None
        valid = valid_rows(layer, reach)
        books = Books.open(Targets(marks, reach, layer.positional), valid, torch.float64)
        if not all(read_heads(layer, partial(_read, books))):
            return None
        return assemble(layer, [books.tally(GivenWeights(layer))])


def _read(books: Books, weights: Any, sequence: int, head: slice) -> bool:
    """Read some heads of one sequence; say whether they are as weights should be."""
    from attncheck.compiled.loops import read_weights

    sight, ledger = books.sight(sequence, head), books.ledger(sequence, head)
    return bool(read_weights(weights, sight, books.keys[sequence], ledger))


@dataclass(frozen=True, eq=False)
class GivenWeights:
    """Weights as a source of single ones; see `Source`."""

    layer: LayerAttention

    @property
    def sinks(self) -> Tensor | None:
        """Mass on learned sinks, None without."""
        held = self.layer.sink_mass
        return None if held is None else held.detach()

    def weights_at(
        self, cells: tuple[Tensor, Tensor, Tensor, Tensor], rows: Mapping[str, Tensor]
    ) -> Tensor:
        """Look up weights."""
        del rows  # weights are what they are
        return self.layer.weights.detach()[cells]

    def weights_in(
        self, place: tuple[int, int, slice, slice], rows: Mapping[str, Tensor]
    ) -> Tensor:
        """Look up a part of a head."""
        del rows
        return self.layer.weights.detach()[place]

    def sink_mass(self, share: Tensor) -> Tensor:
        """Mass on learned sinks by row; 0 without."""
        held = self.sinks
        return torch.zeros_like(share) if held is None else held.to(share)
