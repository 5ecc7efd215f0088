"""The registry of properties: each is one entry with an id, a reason and a source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from attncheck.conformance.case import Case
from attncheck.conformance.design import Plan
from attncheck.conformance.subject import Subject

__all__ = ["PROPERTIES", "Property", "register"]

Cases = Callable[[Plan], Sequence[Case]]
Examine = Callable[[Subject, Case], None]


@dataclass(frozen=True)
class Property:
    """Something that every attention implementation must do.

    Attributes:
        id: What ``-k`` selects and ``expected_failures`` names.
        family: What the property is about.
        reason: Why it matters, one line.
        source: Where it comes from: a paper, documentation, an issue where the bug was real.
        tags: Further words to select by; ``"weights"`` marks those that need returned weights.
        cases: Gives the inputs to try, by effort, seed and what is supported.
        examine: Tries one input; raises `Violation` or `Refused`, or returns.
        script: Lines that show the property on ``q``, ``k``, ``v`` and ``mask``; empty for
            agreement with the oracle, whose lines are derived from the input.
    """

    id: str
    family: str
    reason: str
    source: str
    tags: frozenset[str]
    cases: Cases
    examine: Examine
    script: str = ""


_ENTRIES: dict[str, Property] = {}

PROPERTIES: Final = MappingProxyType(_ENTRIES)
"""All properties by id, read-only, in the order in which the battery runs them."""


def register(
    id: str,
    family: str,
    *,
    reason: str,
    source: str,
    cases: Cases,
    tags: Sequence[str] = (),
    script: str = "",
) -> Callable[[Examine], Examine]:
    """Make a function that examines one input an entry of `PROPERTIES`.

    Args:
        id: Unique; small letters, digits and hyphens.
        family: What the property is about.
        reason: Why it matters, one line.
        source: Where it comes from.
        cases: Gives the inputs to try.
        tags: Further words to select by.
        script: Lines that show it, see `Property`.
    """

    def enter(examine: Examine) -> Examine:
        if id in _ENTRIES:
            raise ValueError(f"id: a property {id!r} exists already")
        _ENTRIES[id] = Property(
            id, family, reason, source, frozenset({family, *tags}), cases, examine, script
        )
        return examine

    return enter
