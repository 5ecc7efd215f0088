"""Reading evidence back from a file: every number is checked before anything is made of it."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["counted", "flag", "numbers", "part", "require_parts", "squared", "unpack", "whole"]

DTYPES: Final = ("<f4", "<f8")

ROUNDING: Final = 1e-6
"""How far below 0, as a share of the largest, rounding may bring what is never negative."""


def require_parts(held: Any, names: tuple[str, ...], what: str) -> Mapping[str, Any]:
    """Return ``held`` if it is a mapping with all of these entries.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(held, Mapping):
        raise ValueError(f"held: {what} is {type(held).__name__}, expected a mapping")
    missing = [name for name in names if name not in held]
    if missing:
        raise ValueError(f"held: not {what}, it lacks {', '.join(missing)}")
    return held


def part(held: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return an entry that is a mapping itself.

    Raises:
        ValueError: It is not.
    """
    return require_parts(held[name], (), name)


def flag(held: Mapping[str, Any], name: str) -> bool:
    """Return an entry that is true or false.

    Raises:
        ValueError: It is something else.
    """
    value = held[name]
    if not isinstance(value, bool):
        raise ValueError(f"held: {name} is {value!r}, expected true or false")
    return value


def whole(value: Any, name: str) -> int:
    """Return an integer of at least 0.

    Raises:
        ValueError: It is something else.
    """
    if type(value) is not int or value < 0:
        raise ValueError(f"held: {name} is {value!r}, expected an integer from 0 on")
    return value


def numbers(value: Any, shape: tuple[int | None, ...], name: str) -> NDArray[np.float64]:
    """Return nested lists as an array of one shape; None stands for any size.

    Raises:
        ValueError: They hold something else than numbers, or are of another shape.
    """
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"held: {name} holds something else than numbers") from None
    if 0 in shape and not array.size:
        array = array.reshape([size or 0 for size in shape])
    fits = array.ndim == len(shape) and all(
        want in (None, have) for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        wanted = tuple("any" if size is None else size for size in shape)
        raise ValueError(f"held: {name} has shape {array.shape}, expected {wanted}")
    return array


def counted(array: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """Return what follows from counts alone: finite and at least 0.

    Raises:
        ValueError: It is not.
    """
    if not np.isfinite(array).all():
        raise ValueError(f"held: {name} holds NaN or infinity, which no count is")
    return squared(array, name)


def squared(array: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """Return sums of squares: at least 0, or NaN or infinite where the weights were.

    Raises:
        ValueError: They are below 0.
    """
    room = ROUNDING * max(1.0, float(np.nan_to_num(array, posinf=0).max(initial=0)))
    if (array < -room).any():
        raise ValueError(f"held: {name} goes down to {np.nanmin(array):g}, expected 0 or more")
    return array


def unpack(packed: Any, heads: int, name: str) -> NDArray[np.float64]:
    """Read packed ``(head, line)`` numbers.

    Raises:
        ValueError: They are truncated, of another dtype or of another shape.
    """
    packed = require_parts(packed, ("shape", "shared", "dtype", "base64"), name)
    shape, dtype = packed["shape"], packed["dtype"]
    if not isinstance(shape, list) or len(shape) != 2 or shape[0] != heads:
        raise ValueError(f"held: {name} has shape {shape}, expected [{heads}, any]")
    size = whole(shape[1], f"the number of lines of {name}")
    if dtype not in DTYPES:
        raise ValueError(f"held: {name} has dtype {dtype!r}, expected one of {DTYPES}")
    rows = 1 if flag(packed, "shared") else heads
    expected = rows * size * np.dtype(dtype).itemsize
    planes = _bytes(packed["base64"], expected, name)
    array = np.ascontiguousarray(planes.reshape(np.dtype(dtype).itemsize, -1).T).view(dtype)
    lines = array.astype(np.float64).reshape(rows, size)
    return np.broadcast_to(lines, (heads, size)).copy()


def _bytes(text: Any, expected: int, name: str) -> NDArray[np.uint8]:
    """Decode and decompress, never more than one byte beyond what is expected."""
    try:
        packed = base64.b64decode(text, validate=True)
        held = zlib.decompressobj().decompress(packed, expected + 1)
    except (TypeError, ValueError, OverflowError, zlib.error) as error:
        raise ValueError(f"held: {name} is damaged ({error})") from None
    if len(held) != expected:
        more = "more" if len(held) > expected else str(len(held))
        raise ValueError(f"held: {name} is damaged: {expected} bytes expected, {more} found")
    return np.frombuffer(held, dtype=np.uint8)
