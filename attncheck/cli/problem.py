"""`CommandError`: what ends a command with one clear line and exit code 2."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import TracebackType
from typing import Final

__all__ = ["CommandError", "described"]

MACHINERY: Final = str(Path(__file__).parent)
"""Where the calls come from that run the user's code."""


class CommandError(Exception):
    """Wrong use, or a model that cannot be loaded or captured; the message is all a user sees."""


def described(error: BaseException, *, place: bool = False) -> str:
    """Describe an exception in one line: type, message, and where it was raised if asked.

    Example:
        >>> described(KeyError("x"))
        "KeyError: 'x'"
    """
    text = " ".join(str(error).split())
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return line + (_place(error.__traceback__) if place else "")


def _place(trace: TracebackType | None) -> str:
    """Where it was raised, if that is not the machinery that was to run the user's code."""
    frames = traceback.extract_tb(trace)
    if not frames or frames[-1].filename.startswith(("<frozen importlib", MACHINERY)):
        return ""
    return f" (at {frames[-1].filename}:{frames[-1].lineno})"
