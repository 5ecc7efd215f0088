"""How many heads a module has: by what it declares, and by the sequences that it was given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn

from attncheck.capture.whereabouts import running_modules

__all__ = ["HeadCount", "declared_heads"]

DECLARED: Final = (
    "num_heads",
    "n_heads",
    "num_attention_heads",
    "n_head",
    "nhead",
    "heads",
    "num_head",
)
"""Attributes in which modules keep their number of heads."""

OUTWARD: Final = 4
"""How many modules are asked for the sequences: an inner one may get query and key already."""


def declared_heads(module: nn.Module) -> set[int]:
    """Return the numbers that a module declares as its heads, key-value heads or others."""
    held = (getattr(module, name, None) for name in DECLARED)
    return {count for count in held if isinstance(count, int)}


@dataclass(frozen=True)
class HeadCount:
    """What is known about the number of heads.

    Attributes:
        declared: By the module, or by one around it that gave it query and key ready made.
        counted: Queries for each position of the sequences that came in; None: not known.
        alone: A tensor of as many axes as those sequences has their batch as its first one.
        length: Positions of each of those sequences, if the batch leads; None: not known.
    """

    declared: frozenset[int]
    counted: int | None = None
    alone: bool = False
    length: int | None = None

    @classmethod
    def of(cls, module: nn.Module, leading: Sequence[int], n_query: int, size: int) -> HeadCount:
        """Count the heads of the call that is running.

        Args:
            module: That attends.
            leading: Lengths of the axes before the queries.
            n_query: Number of queries.
            size: Length of the last axis of query or value.
        """
        declared = declared_heads(module)
        length: int | None = None
        queries = n_query
        for axis in leading:
            queries *= axis
        for number, (running, given) in enumerate(_sequences(module)):
            if number:
                declared |= declared_heads(running)
            ready_made = given.is_floating_point() and given.shape[-1] == size
            if ready_made and given.numel() == queries * size:
                length = given.shape[1] if given.ndim == 3 else None
                continue
            counts = [queries // n for n in _positions(given, n_query) if n and queries % n == 0]
            fitting = [count for count in counts if count in declared]
            counted = next(iter(fitting or counts), None)
            alone = counted == 1 and tuple(given.shape[:2]) == (*leading, n_query)
            length = queries // counted // max(1, given.shape[0]) if counted else None
            return cls(frozenset(declared), counted, alone, length)
        return cls(frozenset(declared), length=length)

    def in_one_axis(self, length: int) -> int:
        """How many heads lie in an axis that may hold sequences and heads; 1: none."""
        if self.alone:
            return 1
        agreed = self.counted in self.declared or not self.declared - {1}
        if self.counted and length % self.counted == 0 and agreed:
            return self.counted
        return next((n for n in self.declared if n > 1 and length % n == 0), 1)


def _sequences(module: nn.Module) -> Iterator[tuple[nn.Module, Tensor]]:
    """Yield the running modules with the sequence that each got, from the one that attends on."""
    begun, asked = False, 0
    for running, code, local in running_modules():
        begun = begun or running is module
        if not begun or code.co_name != "forward":
            continue
        asked += 1
        if asked > OUTWARD:
            return
        for parameter in code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]:
            given: Any = local.get(parameter)
            if isinstance(given, Tensor) and given.ndim >= 2 and not given.is_nested:
                yield running, given
                break


def _positions(given: Tensor, n_query: int) -> list[int]:
    """Return how many positions a sequence may have: the likeliest number first."""
    if not given.is_floating_point():
        return [given.numel()]
    features_last = given.numel() // max(1, given.shape[-1])
    if given.ndim == 2:
        return [features_last]
    features_first = given.numel() // max(1, given.shape[1])
    if given.ndim > 3 and given[0, 0].numel() == n_query:
        return [features_first, features_last]
    return [features_last, features_first]
