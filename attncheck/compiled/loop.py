"""`loop`: how functions over rows are compiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from numba import njit

__all__ = ["exact", "loop"]

Function = TypeVar("Function", bound=Callable[..., Any])

EXACT: Final = {"contract"}
"""What a compiler may do to arithmetic that must round as written: fuse products and sums."""

FAST: Final = {"contract", "reassoc", "nsz", "arcp"}
"""What it may do to sums over a row: add in any order. NaN and infinities stay what they are."""


def loop(function: Function) -> Function:
    """Compile a function that reads and writes arrays it is given, and makes none.

    It runs without Python's lock, and what was compiled is kept beside the source.
    """
    return _compiled(function, FAST)


def exact(function: Function) -> Function:
    """Compile arithmetic whose every rounding is meant."""
    return _compiled(function, EXACT)


def _compiled(function: Function, fastmath: set[str]) -> Function:
    options: dict[str, Any] = {"error_model": "numpy", "nogil": True, "cache": True, **_UNCOUNTED}
    compiled: Function = njit(fastmath=fastmath, **options)(function)  # a number by 0 is no error
    return compiled


def _uncounted() -> dict[str, Any]:
    """Leave out the counting of references to slices, which costs as much as a short row.

    The arrays are held by the caller. Without that option of numba loops are slower, not wrong.
    """
    option: dict[str, Any] = {"_nrt": False}
    try:
        njit(**option)(abs_of_nothing)
    except (KeyError, TypeError):
        return {}
    return option


def abs_of_nothing() -> int:
    """Nothing to compile."""
    return 0


def _forget_stale() -> None:
    """Delete what was compiled before any of these sources changed.

    A kept loop holds the code of the functions it calls, and is compared with its own file alone.
    """
    here = Path(__file__).parent
    newest = max(source.stat().st_mtime for source in here.glob("*.py"))
    for kept in here.glob("__pycache__/*.nb[ci]"):
        try:
            if kept.stat().st_mtime < newest:
                kept.unlink()
        except OSError:  # another process was faster, or may not write here
            continue


_forget_stale()
_UNCOUNTED: Final = _uncounted()
