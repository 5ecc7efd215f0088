"""How many threads MKL uses, which counts its own beside those of torch's OpenMP.

A build of torch that multiplies matrices, or takes exponentials, by MKL tells MKL its number of
threads once, for the process. Setting OpenMP's number of a thread does not reach it: a product in
between would still wake the other cores, and wait for them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

__all__ = ["number_of_thread"]


def number_of_thread(threads: int) -> int:
    """Let MKL use so many threads where this thread calls it; nothing happens without MKL.

    Args:
        threads: How many; 0 for as many as the process was told.

    Returns:
        What held before, to be set again.

    Example:
        >>> before = number_of_thread(1)
        >>> number_of_thread(before) in (0, 1)
        True
    """
    entry = _entry()
    return 0 if entry is None else entry(threads)


@cache
def _entry() -> Callable[[int], int] | None:
    """Return MKL's function of that name, in the library that torch was built into or with."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")):
        try:
            entry = ctypes.CDLL(str(path)).MKL_Set_Num_Threads_Local
        except (OSError, AttributeError):
            continue
        entry.argtypes, entry.restype = [ctypes.c_int], ctypes.c_int
        found: Callable[[int], int] = entry
        return found
    return None
