"""Plain arguments, checked in one way: numbers within bounds, positions, words, flags."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from contextlib import suppress
from numbers import Real
from typing import Any, Final

__all__ = ["flag", "number_within", "reasons", "whole_number", "whole_numbers", "words"]

FLAGS: Final = ("bool", "bool_")
"""Types of flags, in Python and in numpy."""


def number_within(value: Any, name: str, low: float, high: float, what: str) -> float:
    """Return a number of any library as Python's own.

    Args:
        value: The number.
        name: What the message calls it.
        low: Smallest value.
        high: Largest value.
        what: What the message asks for.

    Raises:
        TypeError: It is no number.
        ValueError: It lies outside, or is NaN.

    Example:
        >>> number_within(1.5, "residual", 0, 1, "a share")
        Traceback (most recent call last):
        ValueError: residual: 1.5; expected a share between 0 and 1
    """
    held = value.item() if getattr(value, "ndim", None) == 0 else value
    if isinstance(held, bool) or not isinstance(held, Real):
        raise TypeError(f"{name}: got {type(value).__name__}; expected {what}, {low} to {high}")
    if not low <= float(held) <= high:
        raise ValueError(f"{name}: {held}; expected {what} between {low} and {high}")
    return float(held)


def whole_numbers(values: Any, name: str, what: str) -> list[int]:
    """Return whole numbers of any library as a list of Python's own.

    Args:
        values: The numbers.
        name: What the message calls them.
        what: What the message asks for.

    Raises:
        TypeError: They are no list, or one of them is no whole number.
    """
    listed = isinstance(values, Iterable) and getattr(values, "ndim", 1) > 0
    if not listed or isinstance(values, str):
        raise TypeError(f"{name}: {values!r} is {type(values).__name__}; expected a list of {what}")
    return [whole_number(value, name, what) for value in values]


def whole_number(
    value: Any,
    name: str,
    what: str = "a whole number",
    low: int | None = None,
    high: int | None = None,
) -> int:
    """Return a whole number of any library as Python's own.

    Args:
        value: The number.
        name: What the message calls it.
        what: What the message asks for.
        low: Smallest value; None: there is none.
        high: Largest value; None: there is none.

    Raises:
        TypeError: It is no whole number.
        ValueError: It lies outside.

    Example:
        >>> whole_number(0, "limit", low=1)
        Traceback (most recent call last):
        ValueError: limit: 0; expected at least 1
    """
    number = None
    if type(value).__name__ not in FLAGS and not getattr(value, "ndim", 0):
        with suppress(TypeError):
            number = operator.index(value)
    if number is None:
        raise TypeError(f"{name}: {value!r} is {type(value).__name__}; expected {what}")
    if low is not None and number < low:
        raise ValueError(f"{name}: {number}; expected at least {low}")
    if high is not None and number > high:
        raise ValueError(f"{name}: {number}; expected at most {high}")
    return number


def words(values: Any, name: str, what: str) -> list[str]:
    """Return words as a list; one word is a list of one.

    Args:
        values: The words.
        name: What the message calls them.
        what: What the message asks for.

    Raises:
        TypeError: They are no list, or one of them is no string.
    """
    listed = [values] if isinstance(values, str) or not isinstance(values, Iterable) else values
    held = list(listed) if getattr(listed, "ndim", 1) else [values]
    for word in held:
        if not isinstance(word, str):
            raise TypeError(f"{name}: {word!r} is {type(word).__name__}; expected {what}")
    return held


def reasons(values: Any, name: str) -> dict[str, str]:
    """Return reasons by id; None is none.

    Args:
        values: A mapping, or None.
        name: What the message calls it.

    Raises:
        TypeError: It is no mapping.
    """
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise TypeError(f"{name}: is {type(values).__name__}; expected a mapping, reasons by id")
    return dict(values)


def flag(value: Any, name: str) -> bool:
    """Return a flag.

    Args:
        value: True or False.
        name: What the message calls it.

    Raises:
        TypeError: It is neither.
    """
    if type(value).__name__ not in FLAGS:
        raise TypeError(f"{name}: got {type(value).__name__}; expected True or False")
    return bool(value)
