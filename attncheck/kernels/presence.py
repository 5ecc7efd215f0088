"""Whether triton is there, without importing it."""

from __future__ import annotations

import importlib.util
from functools import cache

__all__ = ["missing"]


@cache
def missing() -> str | None:
    """Say what is missing to run the kernels, and the way out; None where nothing is.

    Example:
        >>> missing() is None or "triton" in missing()
        True
    """
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: it comes with a CUDA build of torch, or pip install triton"
    return None
