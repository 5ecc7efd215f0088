"""Short, safe pieces of text: numbers, tokens and names as a terminal can show them."""

from __future__ import annotations

import math
import unicodedata
from typing import Final

__all__ = ["VERDICT", "clip", "clip_start", "columns_of", "count", "number", "safe", "token"]

VERDICT: Final = 48
"""Columns of a verdict: with ``E       attncheck.CheckFailure: `` before it, 80."""


def columns_of(text: str) -> int:
    """Count the columns that a text takes in a terminal.

    Example:
        >>> columns_of("key"), columns_of("鍵"), columns_of("e\\u0301")
        (3, 2, 1)
    """
    return sum(_columns(character) for character in text)


def safe(text: str) -> str:
    """Escape what would move the cursor, ring the bell or not be printed at all.

    Example:
        >>> safe("a\\nb\\x1b[31m")
        'a\\\\nb\\\\x1b[31m'
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def clip(text: str, columns: int) -> str:
    """Shorten a text to some columns; what is cut ends in ``...``.

    Example:
        >>> clip("encoder.layer.11", 10)
        'encoder...'
    """
    if columns_of(text) <= columns:
        return text
    kept, room = "", columns - 3
    for character in text:
        room -= _columns(character)
        if room < 0:
            break
        kept += character
    return kept + "..."


def clip_start(text: str, columns: int) -> str:
    """Shorten a module path from its start: the end says which module it is.

    Example:
        >>> clip_start("encoder.layer.11", 12)
        '...layer.11'
    """
    if columns_of(text) <= columns:
        return text
    kept, room = "", columns - 3
    for character in reversed(text):
        room -= _columns(character)
        if room < 0:
            break
        kept = character + kept
    whole = kept.partition(".")[2]
    return "..." + (whole or kept)


def token(value: str | int, columns: int = 16) -> str:
    """Show a token: text in quotes and short, an id as one.

    Example:
        >>> token(" cat"), token(17)
        ("' cat'", '(token 17)')
    """
    if isinstance(value, int):
        return f"(token {value})"
    return f"'{clip(safe(str(value)), columns)}'"


def number(value: float | int | str) -> str:
    """Show a value of the table.

    Example:
        >>> [number(x) for x in (0.06161, 3e-7, 0.0, 12345.6, float("nan"), 7, "NaN")]
        ['0.0616', '3.0e-07', '0', '1.2e+04', 'nan', '7', 'NaN']
    """
    if isinstance(value, str):
        return safe(value)
    if isinstance(value, int) or value == 0 or not math.isfinite(value):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e3 else f"{value:.1e}"


def count(value: int) -> str:
    """Show a count in at most five columns; beyond 9,999 with three digits.

    Example:
        >>> count(960), count(11_904), count(49_545_216)
        ('960', '11.9k', '49.5M')
    """
    if value < 10_000:
        return str(value)
    scaled, unit = (value / 1e3, "k") if value < 999_500 else (value / 1e6, "M")
    return f"{scaled:.3g}{unit}"


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
