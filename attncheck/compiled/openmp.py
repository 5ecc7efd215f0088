"""The threads that torch itself computes with, lent to functions in Python.

Between two operations torch's threads stay awake for some milliseconds, each on a core of its own.
Threads beside them would have to share these cores, and to be woken first, which takes as long as a
small layer takes to be read. So the functions run on torch's threads, in a parallel region of the
OpenMP that torch is linked to; operations of torch in such a region use one thread each.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from threading import get_ident
from typing import Any, Final

import torch

__all__ = ["Team", "torchs_team"]

_REGION: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Team:
    """Torch's threads.

    Args:
        library: The OpenMP that torch is linked to, with the entries of GNU's.

    Raises:
        AttributeError: It lacks them.
    """

    def __init__(self, library: Any) -> None:
        self._begin = library.GOMP_parallel
        self._begin.argtypes = [_REGION, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self._begin.restype = None
        self._set_number = library.omp_set_num_threads
        self._set_number.argtypes = [ctypes.c_int]
        self._set_number.restype = None

    def run(self, work: Callable[[], None], threads: int) -> None:
        """Call a function in so many threads at once, the caller's among them.

        Fewer where there are fewer, one where the caller is in such a call itself. Torch uses one
        thread in each. Whatever one of them raises is raised when all have returned.

        Args:
            work: What each thread calls.
            threads: How many.
        """
        errors: list[BaseException] = []
        came: set[int] = set()

        def call(_: Any) -> None:
            try:
                came.add(get_ident())
                torch.get_num_threads()  # a thread takes the process's number when it first asks
                self.number(1)
                work()
            except BaseException as error:  # what leaves this function would be lost
                errors.append(error)

        self._begin(_REGION(call), None, threads, 0)
        if errors:
            raise errors[0]
        if get_ident() not in came:  # Ctrl-C came before the first line of the function
            raise KeyboardInterrupt

    def number(self, threads: int) -> None:
        """Let torch use so many threads where this thread calls it; others keep their number.

        Args:
            threads: How many.
        """
        self._set_number(threads)

    def is_torchs(self) -> bool:
        """Whether torch listens to it: a process may hold more than one OpenMP."""
        before = torch.get_num_threads()
        self.number(before + 1)
        heard = torch.get_num_threads() == before + 1
        self.number(before)
        return heard


@cache
def torchs_team() -> Team | None:
    """Return torch's threads; None where its OpenMP is not GNU's, or its threads were lost.

    Example:
        >>> team, came = torchs_team(), []
        >>> if team is not None:
        ...     team.run(lambda: came.append("a thread"), 1)
        ... else:
        ...     came.append("a thread")
        >>> came
        ['a thread']
    """
    if _forked or not sys.platform.startswith("linux"):
        return None
    for path in (*map(str, sorted((Path(torch.__file__).parent / "lib").glob("libgomp*"))), None):
        try:
            team = Team(ctypes.CDLL(path))
        except (OSError, AttributeError):
            continue
        if team.is_torchs():
            return team
    return None


_forked = False
"""Whether this is a forked process, which has none of the threads that OpenMP believes it has."""


def _lose_threads() -> None:
    global _forked
    _forked = True
    torchs_team.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_lose_threads)
