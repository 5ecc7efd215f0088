"""Patterns that depend on which tokens stand at query and key, or on the segment they are in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attncheck.patterns.grid import Grid
from attncheck.patterns.pattern import Option, Pattern

__all__ = ["BLOCK", "DELIMITER", "DUPLICATE_TOKEN", "INDUCTION"]


def _duplicates(grid: Grid) -> Tensor:
    assert grid.tokens is not None
    same = grid.of_queries(grid.tokens) == Grid.of_keys(grid.tokens)
    return same & (grid.offsets > 0)


def _induction(grid: Grid) -> Tensor:
    assert grid.tokens is not None
    before = grid.tokens.roll(1, -1)
    same = grid.of_queries(grid.tokens) == Grid.of_keys(before)
    return same & (grid.keys > 0) & (grid.offsets > 0)


def _delimiters(grid: Grid) -> Tensor:
    assert grid.delimiters is not None
    return Grid.of_keys(grid.delimiters)


def _same_segment(
    grid: Grid, segments: int | None = None, cuts: tuple[int, ...] | None = None, **_: Any
) -> Tensor:
    if grid.segments is not None and cuts is None and segments is None:
        number = grid.segments
    else:
        starts = even_cuts(grid.n_key, segments or 2) if cuts is None else tuple(cuts)
        inner = torch.tensor(starts, dtype=torch.long, device=grid.keys.device)
        number = (grid.keys[:, None] >= inner).sum(-1)[None]
    return grid.of_queries(number) == Grid.of_keys(number)


def even_cuts(n_key: int, segments: int) -> tuple[int, ...]:
    """Where segments begin, the first one aside, if a sequence is cut into equal parts.

    Example:
        >>> even_cuts(9, 3)
        (3, 6)
    """
    return tuple(n_key * number // segments for number in range(1, segments))


DUPLICATE_TOKEN = Pattern(
    name="duplicate_token",
    support=_duplicates,
    summary="each query looks at earlier places where its own token stands",
    function="notices that a token was seen before",
    source="Wang et al. 2022, Interpretability in the Wild, arXiv:2211.00593",
    aliases=("duplicate", "dup"),
    requires="tokens",
)

INDUCTION = Pattern(
    name="induction",
    support=_induction,
    summary="each query looks at what followed its own token earlier (t[j-1] == t[i], j < i)",
    function="continues a sequence that occurred before: in-context copying",
    source="Olsson et al. 2022, In-context Learning and Induction Heads, arXiv:2209.11895",
    aliases=("induction_head", "prefix_matching"),
    requires="tokens",
)

DELIMITER = Pattern(
    name="delimiter",
    support=_delimiters,
    summary="every query looks at delimiters: punctuation, separators, a set of tokens you name",
    function="a resting place, or a summary of what the delimiter closes",
    source="Clark et al. 2019, What Does BERT Look At?, arXiv:1906.04341, section 3.2",
    aliases=("separator", "sep", "punctuation", "special_token"),
    requires="delimiters",
)

BLOCK = Pattern(
    name="block",
    support=_same_segment,
    summary="each query looks at all of its own segment",
    function="keeps sentences or documents apart",
    source="Kovaleva et al. 2019, Revealing the Dark Secrets of BERT, arXiv:1908.08593 (block)",
    aliases=("segment", "segments", "block_diagonal", "blockwise"),
    requires="segments",
    options=(
        Option("segments", "int", None, 2, None, summary="number of equal segments; default: 2"),
        Option("cuts", "ints", None, summary="where segments begin, 0 left out; overrides"),
    ),
    searched="cuts",
)
