"""Progress on the error stream: on a terminal at once, elsewhere only if work is long."""

from __future__ import annotations

import sys
import time
from typing import Final

__all__ = ["Progress"]

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
