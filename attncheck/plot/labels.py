"""Tokens as tick labels: literal, visible, and only as many as fit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties, findfont, get_font

__all__ = ["LITERAL", "drawable", "label_axis", "tick_step", "visible_token"]

LITERAL: Final[dict[str, Any]] = {"parse_math": False, "usetex": False}
"""Text properties under which ``$`` and ``_`` are only characters."""

LONGEST_TOKEN: Final = 16


def visible_token(token: str | int) -> str:
    r"""Write a token so that a reader sees all of it in one line.

    Characters that cannot be drawn (control characters, or none of the configured fonts has
    them) are written as escapes, spaces at either end as ``␣``; long tokens are cut.

    Example:
        >>> [visible_token(token) for token in ("$x_1$", " the", "\n", "", 17)]
        ['$x_1$', '␣the', '\\n', "''", '17']
    """
    text = str(token)
    if not text:
        return "''"
    body = text.strip(" ")
    left = len(text) - len(text.lstrip(" ")) if body else len(text)
    right = len(text) - left - len(body)
    shown = "␣" * left + drawable(body) + "␣" * right
    return shown if len(shown) <= LONGEST_TOKEN else shown[: LONGEST_TOKEN - 1] + "…"


def drawable(text: str) -> str:
    """Write characters that cannot be drawn as escapes."""
    return "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
    if character.isprintable() and _drawable(character, tuple(matplotlib.rcParams["font.family"])):
        return character
    return character.encode("unicode_escape").decode("ascii")


@lru_cache(maxsize=4096)
def _drawable(character: str, families: tuple[str, ...]) -> bool:
    """Whether one of the configured font families has a glyph for the character."""
    for family in families:
        try:
            path = findfont(FontProperties(family=[family]), fallback_to_default=False)
        except ValueError:
            continue
        if int(get_font(path).get_char_index(ord(character))):
            return True
    return False


def tick_step(count: int, most: int) -> int:
    """Return the smallest step of 1, 2, 4, 5, 8, 10, 16, 20, ... that leaves ``most`` ticks."""
    steps = sorted(factor << power for power in range(count.bit_length()) for factor in (1, 5))
    return next(step for step in steps if -(-count // step) <= most)


def label_axis(
    ax: Axes,
    which: Literal["x", "y"],
    tokens: Sequence[str | int] | None,
    starts: Sequence[int],
    *,
    most: int,
    fontsize: float,
) -> None:
    """Put token labels on one axis of a matrix.

    Args:
        ax: Axes that show cell ``k`` at coordinate ``k``.
        which: ``"x"`` (keys) or ``"y"`` (queries).
        tokens: All tokens of that axis; None labels positions.
        starts: First position of each cell; with blocks of tokens the steps are above 1.
        most: How many labels fit.
        fontsize: In points.
    """
    step = tick_step(len(starts), most)
    cells = list(range(0, len(starts), step))
    blocked = len(starts) > 1 and starts[1] - starts[0] > 1
    labels = []
    for cell in cells:
        position = starts[cell]
        token = "" if tokens is None else visible_token(tokens[position])
        skips = blocked or step > 1 or tokens is None
        labels.append(f"{position} {token}".rstrip() if skips else token)
    longest = max(map(len, labels))
    if which == "y":
        ax.set_yticks(cells, labels, fontsize=fontsize, **LITERAL)
        return
    upright = longest <= 2 or len(cells) * longest <= 24
    turned: dict[str, Any] = {} if upright else {"rotation": 45, "ha": "right"}
    if not upright and len(cells) > 20:
        turned = {"rotation": 90, "ha": "center"}
    elif not upright:
        turned["rotation_mode"] = "anchor"
    ax.set_xticks(cells, labels, fontsize=fontsize, **turned, **LITERAL)
