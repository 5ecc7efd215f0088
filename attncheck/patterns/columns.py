"""Patterns in which queries agree on the key, wherever they stand, and the one of no choice."""

from __future__ import annotations

import torch
from torch import Tensor

from attncheck.patterns.grid import Grid
from attncheck.patterns.pattern import Option, Pattern

__all__ = ["BROADCAST", "FIRST_TOKEN", "UNIFORM"]


def _first(grid: Grid) -> Tensor:
    return grid.keys == grid.first[..., None, None]


def _column(grid: Grid, column: int | None) -> Tensor:
    chosen = grid.n_key // 3 if column is None else column
    return grid.keys == chosen


def _everything(grid: Grid) -> Tensor:
    return torch.ones_like(grid.keys, dtype=torch.bool)


FIRST_TOKEN = Pattern(
    name="first_token",
    support=_first,
    summary="every query looks at the first visible key",
    function="a resting place: attention that has nothing to do goes there (attention sink)",
    source="Xiao et al. 2023, Efficient Streaming Language Models with Attention Sinks, "
    "arXiv:2309.17453",
    aliases=(
        "bos",
        "cls",
        "beginning_of_sequence",
        "attention_sink",
        "sink",
        "first",
    ),
    requires="keys",
)

BROADCAST = Pattern(
    name="broadcast",
    support=_column,
    summary="every query looks at one and the same key: a vertical stripe",
    function="one token (a separator, the subject) is read by all",
    source="Kovaleva et al. 2019, Revealing the Dark Secrets of BERT, arXiv:1908.08593 (vertical)",
    aliases=("vertical", "vertical_stripe", "column"),
    requires="keys",
    options=(
        Option("column", "int", None, 0, None, summary="position of the key; default: a third in"),
    ),
    searched="column",
)

UNIFORM = Pattern(
    name="uniform",
    support=_everything,
    summary="every query spreads its attention evenly over all it sees",
    function="a bag-of-words average",
    source="Clark et al. 2019, What Does BERT Look At?, arXiv:1906.04341 (broad heads)",
    aliases=("broad", "diffuse", "flat"),
    requires="keys",
)
