"""What is said where no single pattern is the answer, and how to build such heads."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Generator, Tensor

from attncheck.patterns.grid import Grid
from attncheck.patterns.pattern import Option, Verdict, normalise

__all__ = ["HETEROGENEOUS", "MIXED", "UNDETERMINED"]


def _heterogeneous(grid: Grid, shape: tuple[int, ...], generator: Generator, keys: int) -> Tensor:
    """Weights of rows that each pick ``keys`` visible keys of their own, at random."""
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
    visible = grid.visible.cpu()
    ranks = drawn.masked_fill(~visible, -1).argsort(-1, descending=True).argsort(-1)
    return normalise(((ranks < keys) & visible).to(torch.float64), visible)


MIXED: Final = Verdict(
    name="mixed",
    summary="two patterns of different kinds, neither of them clearly ahead",
    aliases=("mixture", "vertical_diagonal"),
    options=(
        Option("patterns", "names", ("first_token", "previous_token"), summary="what is mixed"),
        Option("weights", "floats", None, summary="share of each; default: equal"),
    ),
)

HETEROGENEOUS: Final = Verdict(
    name="heterogeneous",
    summary="concentrated, but on keys that no pattern explains",
    aliases=("other", "irregular"),
    options=(Option("keys", "int", 1, 1, None, summary="how many keys each query picks"),),
    target=_heterogeneous,
)

UNDETERMINED: Final = Verdict(
    name="undetermined",
    summary="too few usable positions, or a score too near chance, to say anything",
    aliases=("unknown",),
)


def mixture(parts: list[Tensor], weights: Any) -> Tensor:
    """Add targets with shares that sum to 1.

    Raises:
        ValueError: The shares are not one positive number per part.
    """
    shares = [1.0] * len(parts) if weights is None else [float(weight) for weight in weights]
    if len(shares) != len(parts) or not all(share > 0 for share in shares):
        raise ValueError(f"weights: {weights!r}; expected {len(parts)} positive numbers")
    total = sum(shares)
    return torch.stack([part * (s / total) for part, s in zip(parts, shares, strict=True)]).sum(0)
