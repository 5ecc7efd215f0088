"""Options of a pattern, drawn from the ranges that the catalogue gives as data."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from attncheck.patterns.catalogue import PATTERNS, canonical_name
from attncheck.patterns.pattern import Option

__all__ = ["pattern_options"]

STEPS = 20
"""Ranges of real numbers are drawn on a grid of this many steps, so that examples stay readable."""


def pattern_options(pattern: str, seq_len: int) -> SearchStrategy[dict[str, Any]]:
    """Draw options of a pattern of the catalogue; the minimal example leaves all at their default.

    Args:
        pattern: A name of `attncheck.PATTERNS` or an alias. Verdicts have no options to draw.
        seq_len: Length of the sequence; positions and distances stay inside.

    Raises:
        ValueError: There is no such pattern.

    Example:
        >>> from hypothesis import find
        >>> find(pattern_options("local", 8), lambda options: options.get("width", 2) > 4)
        {'width': 5}
    """
    entry = PATTERNS.get(canonical_name(pattern))
    ranges = {option.name: _values(option, seq_len) for option in (entry.options if entry else ())}
    known = {name: values for name, values in ranges.items() if values is not None}
    return st.fixed_dictionaries({}, optional=known)


def _values(option: Option, seq_len: int) -> SearchStrategy[Any] | None:
    """Return the strategy of one option, or None where nothing lies in its range."""
    low, high = option.bounds(seq_len)
    high = min(high, seq_len - 1) if option.kind in ("int", "ints") else high
    if option.kind == "int":
        held = [n for n in range(int(low), int(high) + 1) if n not in option.excluded]
        return st.sampled_from(held) if held else None
    if option.kind == "float":
        step = (high - low) / STEPS
        return st.integers(0, STEPS).map(lambda n: round(high - n * step, 6))
    if option.kind == "ints" and seq_len > 1:
        places = st.integers(1, seq_len - 1)
        return st.lists(places, min_size=1, max_size=3, unique=True).map(sorted).map(tuple)
    return None
