"""How many heads a module has: by what it declares, and by the sequences that it was given."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from attncheck.capture.whereabouts import given_to, running_modules

__all__ = ["HeadCount", "declared_heads", "is_batch"]

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
        alone: An axis that may hold sequences and heads holds sequences only: heads come one by
            one, or lie beside the queries.
        length: Positions of each of those sequences, if the batch leads; None: not known.
        batch: How many sequences there are, if the batch leads; None: not known.
        whole: Those sequences have the features of all heads, no more and no less.
        given: Positions of each of those sequences, as they lie there; None: not known.
    """

    declared: frozenset[int]
    counted: int | None = None
    alone: bool = False
    length: int | None = None
    batch: int | None = None
    whole: bool = False
    given: int | None = None

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
        queries = math.prod(leading) * n_query
        for number, (running, tensors) in enumerate(_sequences(module)):
            if number:
                declared |= declared_heads(running)
            given = _with_features_of_heads(tensors, queries, size)
            whole = given is not None
            ready = [held for held in tensors if _is_ready_made(held, queries, size)]
            if given is None and ready:
                length = ready[0].shape[1] if ready[0].ndim == 3 else None
                continue
            given = _likeliest(tensors, queries, n_query) if given is None else given
            counts = [queries // n for n in _positions(given, n_query) if n and queries % n == 0]
            fitting = [count for count in counts if count in declared]
            counted = next(iter(fitting or counts), None)
            sequences = given.ndim > 2 or not given.is_floating_point()
            batch = given.shape[0] if sequences else 1
            length = queries // counted // max(1, batch) if counted and sequences else None
            beside = counted and length and n_query == length * counted
            alone = bool(beside) and batch == math.prod(leading)
            alone |= counted == 1 and tuple(given.shape[:2]) == (*leading, n_query)
            lies = given.shape[1] if given.ndim == 3 and given.is_floating_point() else None
            return cls(frozenset(declared), counted, alone, length, batch, whole, lies)
        return cls(frozenset(declared), length=length)

    @property
    def possible(self) -> frozenset[int]:
        """How many heads there may be; empty: nothing says."""
        if self.whole and self.counted is not None:
            return frozenset({self.counted})
        return self.declared

    def beside(self, leading: Sequence[int], n_query: int) -> frozenset[int] | None:
        """How many heads there may be if some lie in the axis of the queries; None: nothing says.

        One as long as the sequences that came in holds positions, or, for one position, all heads.

        Args:
            leading: Lengths of the axes before that one.
            n_query: Length of that axis.
        """
        if n_query in (self.length, self.given):
            return self.declared & {n_query} - {1}
        counted = frozenset(() if self.counted is None else (self.counted,))
        numbers = counted if self.whole else self.declared | counted
        if (self.whole or counted & self.declared) and self.length not in (None, 1):
            numbers -= {n_query}  # there is more than one position
        every = math.prod(leading) * n_query
        found = frozenset(n for n in numbers if n > 1 and every % n == 0)
        return found if numbers or counted else None

    def in_one_axis(self, length: int) -> int:
        """How many heads lie in an axis that may hold sequences and heads; 1: none."""
        if self.alone:
            return 1
        agreed = self.counted in self.declared or not self.declared - {1}
        if self.counted and length % self.counted == 0 and agreed:
            return self.counted
        return next((n for n in self.declared if n > 1 and length % n == 0), 1)


def is_batch(module: nn.Module, axes: Sequence[int], size: int) -> bool:
    """Whether an axis as long as the declared heads is rather that of the sequences that came in.

    Args:
        module: That attends, and declares heads.
        axes: Lengths of two axes, that of the heads last, then that of the queries.
        size: Length of the last axis of query or value.
    """
    batch, heads, n_query = axes
    for _, tensors in _sequences(module):  # as a rule a quick look at the first tells
        if any(given.shape[0] == batch and given.shape[1] != heads for given in tensors):
            return False
        break
    count = HeadCount.of(module, (batch, heads), n_query, size)
    return count.batch == heads and count.counted not in (None, *count.declared)


def _is_ready_made(given: Tensor, queries: int, size: int) -> bool:
    """Whether it may be query or key already, and not what these are made of."""
    return given.is_floating_point() and given.shape[-1] == size and given.numel() == queries * size


def _with_features_of_heads(tensors: Sequence[Tensor], queries: int, size: int) -> Tensor | None:
    """Choose the sequence that has the features of several heads side by side, if one has."""
    for given in tensors:
        width = given.shape[-1]
        if given.is_floating_point() and width > size and given.numel() == queries * size:
            return given
    return None


def _likeliest(tensors: Sequence[Tensor], queries: int, n_query: int) -> Tensor:
    """Choose a sequence with a position for each query, or what is no mask over queries."""
    for given in tensors:
        if given.is_floating_point() and given.ndim > 2 and given[..., 0].numel() == queries:
            return given
    others = (t for t in tensors if t.ndim > 2 or tuple(t.shape) != (n_query, n_query))
    return next(others, tensors[0])


def _sequences(module: nn.Module) -> Iterator[tuple[nn.Module, list[Tensor]]]:
    """Yield the running modules with the tensors that each got, from the one that attends on."""
    begun, asked = False, 0
    for running, code, local in running_modules():
        begun = begun or running is module
        if not begun or code.co_name != "forward":
            continue
        asked += 1
        if asked > OUTWARD:
            return
        given = [t for t in given_to(code, local) if isinstance(t, Tensor) and _may_be_sequence(t)]
        if given:
            yield running, given


def _may_be_sequence(given: Tensor) -> bool:
    return given.ndim >= 2 and not given.is_nested and given.dtype != torch.bool


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
