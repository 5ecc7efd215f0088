"""`Pattern`: one entry of the catalogue; score, chance, generator and documentation follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from attncheck.attention.arguments import number_within, whole_number
from attncheck.patterns.grid import Grid

__all__ = ["STRENGTH", "Option", "Pattern", "Requirement", "Verdict"]

Requirement = Literal["keys", "positions", "tokens", "delimiters", "segments"]
"""What a pattern must know to be scored; a layer that lacks it has no such score."""


@dataclass(frozen=True)
class Option:
    """One dial of a pattern, with its range as data.

    Attributes:
        name: The keyword.
        kind: ``"int"``, ``"float"``, ``"ints"``, ``"floats"`` or
            ``"names"`` (the last three: tuples).
        default: Value where the caller gives none; None: chosen from the length.
        low: Smallest value.
        high: Largest value; None: as far as the sequence reaches (``seq_len - 1``).
        excluded: Values inside the range that belong to another pattern.
        summary: What it does.
    """

    name: str
    kind: Literal["int", "float", "ints", "floats", "names"]
    default: Any
    low: float | None = None
    high: float | None = None
    excluded: tuple[int, ...] = ()
    summary: str = ""

    def bounds(self, seq_len: int) -> tuple[float, float]:
        """Smallest and largest useful value for sequences of ``seq_len``."""
        low = 0.0 if self.low is None else self.low
        return low, max(low, seq_len - 1.0) if self.high is None else self.high

    def checked(self, value: Any, pattern: str) -> Any:
        """Return a value as Python's own number, where the option is one.

        Raises:
            TypeError: It is no such number.
            ValueError: It does not lie in the range.
        """
        if value is None or self.kind not in ("int", "float"):
            return value
        whole = self.kind == "int"
        if whole:
            value = whole_number(value, self.name)
        else:
            value = number_within(value, self.name, -math.inf, math.inf, "a number")
        if (self.low is not None and value < self.low) or (
            self.high is not None and value > self.high
        ):
            low = "-inf" if self.low is None else self.low
            high = "seq_len - 1" if self.high is None else self.high
            raise ValueError(
                f"{self.name}: {value!r} for pattern {pattern!r}; expected "
                f"{'an integer' if whole else 'a number'} from {low} to {high}"
            )
        if value in self.excluded:
            raise ValueError(
                f"{self.name}: {value!r} makes another pattern than {pattern!r}: 0 is diagonal, "
                "1 previous_token, -1 next_token"
            )
        return value


STRENGTH: Final = Option(
    "strength",
    "float",
    1.0,
    0.0,
    1.0,
    summary="share of the mass that lies on the pattern; the rest is spread over visible keys",
)


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """A head pattern: a relation between a query and the keys it selects.

    From ``support`` follow the score of given weights, its chance level, and the generator.

    Attributes:
        name: The canonical name.
        support: ``support(grid, **options)`` -> bool, broadcastable to ``(batch, head, query,
            key)``: the keys selected. Keys that a query does not see are left out by whoever asks.
        summary: What the head looks at, in one line.
        function: What such heads are for.
        source: Where the pattern was described.
        aliases: Other names accepted on input.
        requires: What must be known to score it.
        options: Dials of ``support`` and ``profile``.
        profile: How mass falls over the support, relative, same arguments and shape; None: evenly.
        direction: ``"any"``, or ``"bidirectional"`` if causal attention cannot do it.
        searched: Which option is searched for when scoring: ``"offset"``, ``"width"``,
            ``"column"`` or ``"cuts"``; None: there is nothing to search.

    Example:
        >>> even = Pattern(
        ...     name="even_keys",
        ...     support=lambda grid: grid.keys % 2 == 0,
        ...     summary="keys at even positions",
        ...     requires="keys",
        ... )
        >>> even.target(Grid(torch.ones(1, 1, 1, 4, dtype=torch.bool), torch.tensor([3]))).tolist()
        [[[[0.5, 0.0, 0.5, 0.0]]]]
    """

    name: str
    support: Callable[..., Tensor]
    summary: str
    function: str = ""
    source: str = ""
    aliases: tuple[str, ...] = ()
    requires: Requirement = "positions"
    options: tuple[Option, ...] = ()
    profile: Callable[..., Tensor] | None = None
    direction: Literal["any", "bidirectional"] = "any"
    searched: Literal["offset", "width", "column", "cuts"] | None = None

    def applies(self, grid: Grid) -> bool:
        """Whether the grid knows what the pattern needs."""
        if self.direction == "bidirectional" and grid.causal:
            return False
        known: Mapping[str, bool] = {
            "keys": True,
            "positions": grid.positional,
            "tokens": grid.positional and grid.tokens is not None,
            "delimiters": grid.delimiters is not None,
            "segments": grid.positional,
        }
        return known[self.requires]

    def selected(self, grid: Grid, **options: Any) -> Tensor:
        """The visible keys it selects: bool ``(batch or 1, head or 1, query, key)``."""
        return self.support(grid, **options) & grid.visible

    def target(self, grid: Grid, **options: Any) -> Tensor:
        """Weights of a head that does only this, float64 ``(batch or 1, head or 1, query, key)``.

        A row whose keys do not exist (row 0 of previous_token) is spread evenly over what it sees:
        it says nothing about the pattern, and the detector counts it as nothing.
        """
        share = self.selected(grid, **options).to(torch.float64)
        if self.profile is not None:
            share = share * self.profile(grid, **options)
        return normalise(share, grid.visible)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What `classify_heads` says where no single pattern is the answer.

    Attributes:
        name: The verdict.
        summary: When it is given.
        aliases: Other names accepted on input.
        options: Dials of ``target``.
        target: ``target(grid, generator, **options)``: weights of such a head, or None.
    """

    name: str
    summary: str
    aliases: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    target: Callable[..., Tensor] | None = None


def normalise(share: Tensor, visible: Tensor) -> Tensor:
    """Scale rows to sum 1; rows without anything become even over their visible keys."""
    share = torch.where(share.sum(-1, keepdim=True) > 0, share, visible.to(share.dtype))
    return share / share.sum(-1, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
