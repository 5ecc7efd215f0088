"""Patterns that depend on the distance between query and key."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from attncheck.patterns.grid import Grid
from attncheck.patterns.pattern import Option, Pattern

__all__ = ["DIAGONAL", "LOCAL", "NEXT_TOKEN", "OFFSET", "PREVIOUS_TOKEN"]

CLARK = "Clark et al. 2019, What Does BERT Look At?, arXiv:1906.04341, section 3.1"


def _at(grid: Grid, offset: int) -> Tensor:
    return grid.offsets == offset


def _in_band(grid: Grid, width: int, **_: Any) -> Tensor:
    return grid.offsets.abs() <= width


def _decay(grid: Grid, decay: float, **_: Any) -> Tensor:
    return decay ** grid.offsets.abs().double()


DIAGONAL = Pattern(
    name="diagonal",
    support=lambda grid: _at(grid, 0),
    summary="each query looks at itself",
    function="keeps a token's own content; rare in trained models except with relative positions",
    source=CLARK,
    aliases=("self", "current_token", "identity"),
)

PREVIOUS_TOKEN = Pattern(
    name="previous_token",
    support=lambda grid: _at(grid, 1),
    summary="each query looks one token back",
    function="carries the previous token forward; the first half of an induction circuit",
    source=CLARK,
    aliases=("previous", "prev", "prev_token"),
)

NEXT_TOKEN = Pattern(
    name="next_token",
    support=lambda grid: _at(grid, -1),
    summary="each query looks one token ahead (bidirectional attention only)",
    function="context from the right in encoders",
    source=CLARK,
    aliases=("next",),
    direction="bidirectional",
)

OFFSET = Pattern(
    name="offset",
    support=lambda grid, offset: _at(grid, offset),
    summary="each query looks a fixed number of tokens back (a negative number: ahead)",
    function="fixed-distance context; on repeated text it may be induction in disguise",
    source="Jiang et al. 2024, MInference 1.0, arXiv:2407.02490 (the slash lines)",
    aliases=("slash", "fixed_offset", "shifted_diagonal"),
    options=(Option("offset", "int", 2, None, None, (-1, 0, 1), summary="how many tokens back"),),
    searched="offset",
)

LOCAL = Pattern(
    name="local",
    support=_in_band,
    summary="each query looks at its neighbours, up to some distance",
    function="local context: phrases, word pieces",
    source="Kovaleva et al. 2019, Revealing the Dark Secrets of BERT, arXiv:1908.08593 (diagonal)",
    aliases=("sliding_window", "band", "window", "neighbors", "neighbours"),
    options=(
        Option("width", "int", 2, 1, None, summary="largest distance looked at"),
        Option("decay", "float", 0.6, 0.05, 1.0, summary="factor per step of distance; 1: flat"),
    ),
    profile=_decay,
    searched="width",
)
