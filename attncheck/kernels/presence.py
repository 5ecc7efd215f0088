"""Whether triton is there, without importing it."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Final

__all__ = ["missing"]

LEAST: Final = (3, 3)
"""The first triton whose language has what kernels say."""


@cache
def missing() -> str | None:
    """Say what is missing to run the kernels, and the way out; None where nothing is.

    Example:
        >>> missing() is None or "triton" in missing()
        True
    """
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: it comes with a CUDA build of torch, or pip install triton"
    try:
        found = version("triton")
    except PackageNotFoundError:  # of a build of torch's own
        return None
    numbers = tuple(map(int, re.findall(r"\d+", found)[:2]))
    return None if numbers >= LEAST else f"triton is {found}: kernels need 3.3 (torch 2.7) or later"
