"""Sums over rows, of one relation between queries and keys or of many at once."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attncheck.patterns.reading import counted, numbers, require_parts, squared, unpack, whole

__all__ = [
    "SUMS",
    "Array",
    "Lines",
    "Sums",
    "add",
    "join",
    "lift",
    "no_lines",
    "pick",
    "ratio",
    "total",
]

Array: TypeAlias = NDArray[np.float64]

Held = TypeVar("Held", "Sums", "Lines")

SUMS: Final = ("mass", "chance", "rows", "variance")

COUNTS: Final = ("chance", "rows")
"""Those that follow from what rows see, whatever the weights."""


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over rows for one relation between query and keys, each ``(head,)``.

    Attributes:
        mass: Attention on the selected keys.
        chance: What uniform attention would put there: selected keys / visible keys.
        rows: Number of usable rows that select at least one visible key.
        variance: What chance alone could do to ``mass``: its variance if the weights of each row
            were shuffled over the visible keys.
    """

    mass: Array
    chance: Array
    rows: Array
    variance: Array

    def to_dict(self) -> dict[str, Any]:
        """Return the sums as lists; exact."""
        return {name: getattr(self, name).tolist() for name in SUMS}

    @classmethod
    def from_dict(
        cls,
        held: Mapping[str, Any],
        heads: int,
        name: str,
        counts: tuple[str, ...] = COUNTS,
    ) -> Sums:
        """Read what `to_dict` returned.

        Args:
            held: Lists of numbers.
            heads: How many numbers each list has.
            name: What messages call the sums.
            counts: Which of them follow from counts alone.

        Raises:
            ValueError: It is damaged.
        """
        held = require_parts(held, SUMS, name)
        read = {n: numbers(held[n], (heads,), f"{n} of {name}") for n in SUMS}
        return cls(**_checked(read, counts, name))


@dataclass(frozen=True, eq=False)
class Lines:
    """The same sums for many single-key relations at once, each ``(head, line)``.

    For offsets line ``k`` is the diagonal ``k - zero`` tokens behind the query; for columns it is
    the ``k``-th key, counted from the first key that anyone sees (``zero`` is 0). Variances may
    be float32. Arrays may be shared, and are not to be written to.
    """

    mass: Array
    chance: Array
    rows: Array
    variance: Array
    zero: int = 0

    def at(self, number: int) -> Sums:
        """Sums of one offset or column; zeros where it never occurred."""
        index = number + self.zero
        if not 0 <= index < self.mass.shape[1]:
            nothing = np.zeros(self.mass.shape[0])
            return Sums(nothing, nothing, nothing, nothing)
        return Sums(*(getattr(self, name)[:, index] for name in SUMS))

    def of_heads(self, index: NDArray[np.int64]) -> Sums:
        """Sums of one line of each head, given its place ``(head,)``."""
        heads = np.arange(len(index))
        return Sums(*(getattr(self, name)[heads, index] for name in SUMS))

    @property
    def numbers(self) -> NDArray[np.int64]:
        """Offset or column of each line."""
        return np.arange(self.mass.shape[1]) - self.zero

    def aligned(self, zero: int, size: int) -> Lines:
        """Return the same lines with room for more of them."""
        before, after = zero - self.zero, size - zero - (self.mass.shape[1] - self.zero)
        held = {n: np.pad(getattr(self, n), ((0, 0), (before, after))) for n in SUMS}
        return Lines(**held, zero=zero)

    def cropped(self, ahead: int, behind: int) -> Lines:
        """Return at most so many lines before number 0, and from it on."""
        first = max(0, self.zero - ahead)
        kept = slice(first, self.zero + behind)
        held = {name: getattr(self, name)[:, kept] for name in SUMS}
        return Lines(**held, zero=self.zero - first)

    def merge(self, other: Lines) -> Lines:
        """Add the lines of the same heads from other sequences, longer or shorter."""
        zero = max(self.zero, other.zero)
        size = zero + max(held.mass.shape[1] - held.zero for held in (self, other))
        return add(self.aligned(zero, size), other.aligned(zero, size))

    def to_dict(self) -> dict[str, Any]:
        """Return the lines packed; exact but for the variance, which is rounded to float32."""
        packed = {name: _pack(getattr(self, name), name == "variance") for name in SUMS}
        return {"zero": self.zero, **packed}

    @classmethod
    def from_dict(cls, held: Mapping[str, Any], heads: int, name: str) -> Lines:
        """Read what `to_dict` returned.

        Args:
            held: Packed numbers.
            heads: Of how many heads they are.
            name: What messages call the lines.

        Raises:
            ValueError: It is damaged.
        """
        held = require_parts(held, ("zero", *SUMS), name)
        read = {n: unpack(held[n], heads, f"{n} of {name}") for n in SUMS}
        _checked(read, COUNTS, name)
        sizes = {array.shape[1] for array in read.values()}
        zero = whole(held["zero"], f"zero of {name}")
        if len(sizes) > 1 or zero > max(0, *sizes):
            raise ValueError(f"held: {name} has {sorted(sizes)} lines, zero at {zero}")
        return cls(**read, zero=zero)


def no_lines(heads: int) -> Lines:
    """No lines at all."""
    nothing = np.zeros((heads, 0))
    return Lines(nothing, nothing, nothing, nothing)


def add(a: Held, b: Held) -> Held:
    """Add sums of the same relations."""
    return replace(a, **{name: getattr(a, name) + getattr(b, name) for name in SUMS})


def pick(held: Held, heads: list[int]) -> Held:
    """Sums of some heads."""
    return replace(held, **{name: getattr(held, name)[heads] for name in SUMS})


def join(parts: Sequence[Held]) -> Held:
    """Put sums of different heads side by side."""
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in SUMS
    }
    return replace(parts[0], **arrays)


def lift(sums: Sums | Lines) -> Array:
    """``(mass - chance) / (1 - chance)``; 0 where every row's keys are all it sees."""
    room = sums.rows - sums.chance
    above = np.where(room > 1e-9 * sums.rows, sums.mass - sums.chance, 0.0)
    return ratio(above, np.where(sums.rows > 0, np.maximum(room, 1e-9), 0.0))


def ratio(top: Array, bottom: Array) -> Array:
    """Quotient; NaN where there is nothing to divide by."""
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)


def total(rows: Tensor) -> Array:
    """Sum ``(..., batch, head, row)`` to ``(..., head)``, in float64."""
    held: Array = rows.detach().sum((-3, -1), dtype=torch.float64).cpu().numpy()
    return held


def _checked(read: dict[str, Array], counts: tuple[str, ...], name: str) -> dict[str, Array]:
    """Return sums that are possible: counts, sums of squares, and sums of any weights."""
    for part in counts:
        counted(read[part], f"{part} of {name}")
    squared(read["variance"], f"variance of {name}")
    return read


def _pack(array: Array, short: bool) -> dict[str, Any]:
    """Pack ``(head, line)`` numbers for JSON: base64 of the compressed bytes.

    Like bytes of all numbers stand together, which compresses best; what all heads share (counts
    and chances, mostly) is held once.
    """
    shared = len(array) > 1 and bool((array == array[0]).all())
    held = np.ascontiguousarray(array[:1] if shared else array, dtype="<f4" if short else "<f8")
    planes = held.reshape(-1, 1).view(np.uint8).T.tobytes()
    return {
        "shape": list(array.shape),
        "shared": shared,
        "dtype": held.dtype.str,
        "base64": base64.b64encode(zlib.compress(planes, 6)).decode("ascii"),
    }
