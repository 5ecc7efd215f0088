"""Whether numba is there, without importing it."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Final

__all__ = ["MANY", "SMALL", "missing"]

SMALL: Final = 1 << 20
"""Weights of a layer below which loading compiled loops costs more than they save in one look."""

MANY: Final = 1 << 16
"""Weights of a layer, or cells of a grid, from which on a profile on a CPU is found by loops."""


@cache
def missing() -> str | None:
    """Say what is missing to run compiled loops, and the way out; None where nothing is.

    Example:
        >>> missing() is None or "attncheck[fast]" in missing()
        True
    """
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed: pip install 'attncheck[fast]'"
    return None
