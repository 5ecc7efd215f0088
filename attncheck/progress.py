"""Progress on the error stream: on a terminal at once, elsewhere only if work is long."""

from __future__ import annotations

import sys
import time
from typing import Final

__all__ = ["Progress", "counter"]

PATIENCE: Final = 5.0
"""Seconds of silence that a reader of a log file is spared from lines about."""


class Progress:
    """Says what is being done, over one line of a terminal or now and then in a log."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = time.monotonic()
        self._width = 0

    def say(self, what: str) -> None:
        """Report the present step."""
        if self._terminal:
            print("\r" + what.ljust(self._width), end="", file=sys.stderr, flush=True)
            self._width = len(what)
        elif time.monotonic() - self._last > PATIENCE:
            print(what, file=sys.stderr, flush=True)
            self._last = time.monotonic()

    def note(self, what: str) -> None:
        """Report what a reader should know at once, on a line of its own."""
        self.done()
        print(what, file=sys.stderr, flush=True)

    def done(self) -> None:
        """Clear the line."""
        if self._terminal and self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr, flush=True)
        self._width = 0


def counter(done: int, total: int | None, seconds: float, noun: str = "batch") -> str:
    """Say how far a loop is: a bar and the time left where the end is known.

    Args:
        done: Rounds so far.
        total: All rounds; None: nobody knows.
        seconds: Time that the rounds so far took.
        noun: What one round is.

    Example:
        >>> counter(5, 20, 10.0)
        'batch 5 of 20 [#####...............] 2.0 s each, 0:30 left'
        >>> counter(5, None, 0.1)
        'batch 5, 0.02 s each'
    """
    each = seconds / max(1, done)
    pace = f"{each:.{1 if each >= 1 else 2}f} s each"
    if not total:
        return f"{noun} {done}, {pace}"
    marks = 20 * done // total
    left = round(each * max(0, total - done))
    clock = (
        f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
        if left >= 3600
        else (f"{left // 60}:{left % 60:02}")
    )
    bar = "#" * marks + "." * (20 - marks)
    return f"{noun} {done} of {total} [{bar}] {pace}, {clock} left"
