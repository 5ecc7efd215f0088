"""Colours of the patterns: a hue per family, a lightness per member, and a short name each."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Final

from numpy.typing import NDArray

__all__ = ["PATTERN_STYLES", "UNKNOWN_STYLE", "ink_on", "style_of"]

UNKNOWN_STYLE: Final = ("#FFFFFF", "?")

PATTERN_STYLES: Final = MappingProxyType(
    {
        # by position: blues
        "diagonal": ("#08306B", "self"),
        "previous_token": ("#2171B5", "prev"),
        "next_token": ("#6BAED6", "next"),
        "offset": ("#9ECAE1", "offset"),
        "local": ("#D0E3F4", "local"),
        # by column: oranges
        "first_token": ("#E66101", "first"),
        "broadcast": ("#FDA550", "column"),
        "delimiter": ("#FEDDB5", "delim"),
        # by token: teals
        "induction": ("#00655B", "induct"),
        "duplicate_token": ("#5AB4AC", "dupl"),
        # by segment, and by nothing
        "block": ("#8E4FA8", "block"),
        "uniform": ("#F7EF8A", "unif"),
        # verdicts: greys
        "mixed": ("#737373", "mixed"),
        "heterogeneous": ("#B5B5B5", "other"),
        "undetermined": ("#EDEDED", "undet"),
    }
)
"""By canonical name: colour and the short name that stands in a cell.

Families differ in hue along the blue-orange axis, which colour-blind readers keep, and members in
lightness; the short names say it without any colour.
"""


def style_of(label: str) -> tuple[str, str]:
    """Return colour and short name of a label; a pattern of your own is white, its name cut."""
    return PATTERN_STYLES.get(label, (UNKNOWN_STYLE[0], label[:6] or UNKNOWN_STYLE[1]))


def ink_on(colour: Sequence[float] | NDArray[Any]) -> str:
    """Return black or white, whichever has more contrast on ``(red, green, blue, ...)``, 0 to 1.

    By relative luminance (WCAG 2.1, sec. 1.4.3); the contrast is at least 4.5 to 1.

    Example:
        >>> ink_on((1.0, 1.0, 0.0)), ink_on((0.0, 0.0, 0.5))
        ('black', 'white')
    """
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "black"
