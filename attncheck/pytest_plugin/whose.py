"""Whose error an exception is, told from its traceback."""

from __future__ import annotations

import dis
import linecache
import re
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final

__all__ = ["OWN", "is_no_bug"]

OWN: Final = "attncheck"
RAISE: Final = dis.opmap["RAISE_VARARGS"]

HANDED_ON: Final = re.compile(
    r"(return |\w+ = )?[\w.]+\(((self|cls), )?\*args(, \*\*(kwargs|options|\(kwargs or \{\}\)))?\)"
)
"""A line of ours that calls the model, or a function of torch, with what the user gave it."""

BETWEEN: Final = re.compile(
    r"(return |\w+ = )?[\w.\[\]-]+\((\w+, )*\*?args, (\*\*)?\(?(kwargs|options)\b.*\)"
)
"""A line of ours that leads there, from where the user called us or we stand in torch's place."""


def is_no_bug(excinfo: Any) -> bool:
    """Whether an exception that came through our code is none that our code is to blame for.

    We raised it on purpose; or it came out of a call that somebody else made and we only handed on:
    of the model, or of a function that the model called. Any other one a line of ours ran into, or
    something that this line called for itself.

    Args:
        excinfo: What pytest has of the exception, or None.
    """
    entries = [*_entries(None if excinfo is None else excinfo.tb)]
    own = [number for number, entry in enumerate(entries) if _package(entry) == OWN]
    if not own:
        return False
    innermost = entries[own[-1]]
    if innermost is entries[-1] and innermost.tb_frame.f_code.co_code[innermost.tb_lasti] == RAISE:
        return True
    return HANDED_ON.fullmatch(_line(innermost)) is not None and _is_theirs(entries[: own[-1]])


def _is_theirs(outer: list[TracebackType]) -> bool:
    """Whether somebody else made the call that we handed on: our own go through torch as well."""
    for entry in reversed(outer):
        package = _package(entry)
        if package not in (OWN, "torch"):
            return True
        line = _line(entry)
        if package == OWN and not (HANDED_ON.fullmatch(line) or BETWEEN.fullmatch(line)):
            return False
    return False


def _entries(trace: TracebackType | None) -> Iterator[TracebackType]:
    """From the outermost to where the exception was raised."""
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _package(entry: TracebackType) -> str:
    return str(entry.tb_frame.f_globals.get("__name__")).partition(".")[0]


def _line(entry: TracebackType) -> str:
    frame = entry.tb_frame
    return linecache.getline(frame.f_code.co_filename, entry.tb_lineno, frame.f_globals).strip()
