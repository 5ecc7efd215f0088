"""`PatternEvidence`: what the detector reads instead of the matrix, as sums that add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from attncheck.patterns.catalogue import PATTERNS, canonical_name

__all__ = ["SUMS", "Lines", "PatternEvidence", "Sums", "join_heads", "lift", "no_lines"]

Array: TypeAlias = NDArray[np.float64]

OFFSET_OF: Final = {"diagonal": 0, "previous_token": 1, "next_token": -1}
"""Patterns that are one diagonal, and which."""


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


@dataclass(frozen=True, eq=False)
class Lines:
    """The same sums for many single-key relations at once, each ``(head, line)``.

    For offsets line ``k`` is the diagonal ``k - zero`` tokens behind the query; for columns it is
    the ``k``-th key, counted from the first key that anyone sees (``zero`` is 0).
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

    @property
    def numbers(self) -> NDArray[np.int64]:
        """Offset or column of each line."""
        return np.arange(self.mass.shape[1]) - self.zero

    def aligned(self, zero: int, size: int) -> Lines:
        """Return the same lines with room for more of them."""
        before, after = zero - self.zero, size - zero - (self.mass.shape[1] - self.zero)
        held = {n: np.pad(getattr(self, n), ((0, 0), (before, after))) for n in SUMS}
        return Lines(**held, zero=zero)


def no_lines(heads: int) -> Lines:
    """No lines at all."""
    nothing = np.zeros((heads, 0))
    return Lines(nothing, nothing, nothing, nothing)


SUMS: Final = ("mass", "chance", "rows", "variance")


@dataclass(frozen=True, eq=False)
class PatternEvidence:
    """Everything that naming the heads of one layer needs, as float64 sums.

    Sums over rows, sequences and calls add up: the evidence of a batch is the merged evidence of
    its parts. Rows count if they carry attention and see at least two keys; what hidden keys hold
    is left out.

    Attributes:
        rows: Usable rows, ``(head,)``.
        sequences: Sequences they came from, ``(head,)``.
        inverse: Sum of ``1 / visible keys``.
        square: Sum of squared weights.
        entropy: Sum of the entropies of the rows, in nats.
        capacity: Sum of ``log(visible keys)``, the entropy that even rows would have.
        overlap: Sum over rows of what is shared with even attention, ``sum_j min(a_j, 1 / v)``.
        positional: Whether offsets mean anything here.
        causal: Whether queries saw no later key.
        offsets: Mass by distance between query and key; no lines if not ``positional``.
        columns: Mass by key, counted from the first visible key.
        templates: Sums of the patterns that tokens or segments define, by name; only those that
            could be scored. ``"block"`` uses the segments given, else those that were found.
        beside: Sums of the block once more, over what is left if the clear single lines (a column,
            a diagonal) are cut out; ``rows`` is the mass that is left.

    Example:
        >>> import torch
        >>> from attncheck.attention import LayerAttention
        >>> from attncheck.patterns import collect_evidence
        >>> evidence = collect_evidence(LayerAttention(torch.eye(8)[None, None]))
        >>> evidence.mass("diagonal"), evidence.chance("diagonal"), evidence.lift("diagonal")
        (array([1.]), array([0.125]), array([1.]))
    """

    rows: Array
    sequences: Array
    inverse: Array
    square: Array
    entropy: Array
    capacity: Array
    overlap: Array
    positional: bool
    causal: bool
    offsets: Lines
    columns: Lines
    templates: Mapping[str, Sums]
    beside: Sums

    @property
    def n_heads(self) -> int:
        """Number of heads."""
        return int(self.rows.shape[0])

    @property
    def names(self) -> tuple[str, ...]:
        """Patterns that can be scored from this evidence."""
        return tuple(name for name in PATTERNS if self._knows(name))

    def _knows(self, name: str) -> bool:
        entry = PATTERNS[name]
        if entry.requires == "positions":
            return self.positional and not (self.causal and entry.direction == "bidirectional")
        return entry.requires == "keys" or name in self.templates

    def sums(self, name: str) -> Sums:
        """Return the sums of a pattern; where a parameter is searched, those of the best one.

        Raises:
            ValueError: Unknown name, or this evidence cannot score it.
        """
        name = canonical_name(name)
        if name not in PATTERNS:
            raise ValueError(f"pattern: {name!r} is a verdict, it has no mass; use a pattern")
        if not self._knows(name):
            raise ValueError(
                f"pattern: {name!r} cannot be scored here; it needs {PATTERNS[name].requires}. "
                f"Available: {', '.join(self.names)}"
            )
        if name in OFFSET_OF:
            return self.offsets.at(OFFSET_OF[name])
        if name == "first_token":
            return self.columns.at(0)
        if name == "uniform":
            return Sums(self.overlap, self.inverse, self.rows, self.inverse * 0)
        if name in self.templates:
            return self.templates[name]
        from attncheck.patterns.search import best

        return best(self, name)[0]

    def mass(self, name: str) -> Array:
        """Mean share of attention on the keys of a pattern, ``(head,)``; NaN without a row.

        For ``uniform`` it is the share that even attention would give as well, per row.
        """
        sums = self.sums(name)
        return _ratio(sums.mass, sums.rows)

    def chance(self, name: str) -> Array:
        """The mass that uniform attention over the visible keys would have, ``(head,)``.

        For ``uniform`` the roles are turned: it is the overlap that one-hot attention would have.
        """
        sums = self.sums(name)
        return _ratio(sums.chance, sums.rows)

    def lift(self, name: str) -> Array:
        """``(mass - chance) / (1 - chance)``, ``(head,)``: 0 at chance, 1 at best."""
        return lift(self.sums(name))

    def merge(self, other: PatternEvidence) -> PatternEvidence:
        """Add the evidence of the same heads from other sequences.

        Raises:
            ValueError: The two are not of the same heads in the same kind of attention.
        """
        for field in ("n_heads", "positional", "causal"):
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine != theirs:
                raise ValueError(f"other: {field} is {theirs}, here {mine}: not the same layer")
        if set(self.templates) != set(other.templates):
            raise ValueError(
                f"other: scored {sorted(other.templates)}, here {sorted(self.templates)}: give "
                "tokens and segments with every part, or with none"
            )
        added = {name: getattr(self, name) + getattr(other, name) for name in PLAIN}
        return replace(
            self,
            **added,
            offsets=_add_lines(self.offsets, other.offsets),
            columns=_add_lines(self.columns, other.columns),
            templates={
                name: Sums(*(getattr(held, s) + getattr(other.templates[name], s) for s in SUMS))
                for name, held in self.templates.items()
            },
            beside=Sums(*(getattr(self.beside, s) + getattr(other.beside, s) for s in SUMS)),
        )

    def select(self, heads: list[int]) -> PatternEvidence:
        """Return the evidence of some heads, in the order given."""
        return replace(
            self,
            **{name: getattr(self, name)[heads] for name in PLAIN},
            offsets=_pick(self.offsets, heads),
            columns=_pick(self.columns, heads),
            templates={name: _pick(held, heads) for name, held in self.templates.items()},
            beside=_pick(self.beside, heads),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the evidence as numbers, lists and dicts, ready for JSON; exact."""
        return {
            **{name: getattr(self, name).tolist() for name in PLAIN},
            "positional": self.positional,
            "causal": self.causal,
            "offsets": _as_dict(self.offsets),
            "columns": _as_dict(self.columns),
            "templates": {name: _as_dict(held) for name, held in self.templates.items()},
            "beside": _as_dict(self.beside),
        }

    @classmethod
    def from_dict(cls, held: Mapping[str, Any]) -> PatternEvidence:
        """Read what `to_dict` returned.

        Raises:
            ValueError: A field is missing.
        """
        missing = [field.name for field in fields(cls) if field.name not in held]
        if missing:
            raise ValueError(f"held: not pattern evidence, it lacks {', '.join(missing)}")
        plain = {name: np.asarray(held[name], dtype=np.float64) for name in PLAIN}
        heads = len(plain["rows"])
        return cls(
            **plain,
            positional=bool(held["positional"]),
            causal=bool(held["causal"]),
            offsets=_as_lines(held["offsets"], heads),
            columns=_as_lines(held["columns"], heads),
            templates={
                name: Sums(*(np.asarray(sums[s], dtype=np.float64) for s in SUMS))
                for name, sums in held["templates"].items()
            },
            beside=Sums(*(np.asarray(held["beside"][s], dtype=np.float64) for s in SUMS)),
        )


PLAIN: Final = ("rows", "sequences", "inverse", "square", "entropy", "capacity", "overlap")


def lift(sums: Sums | Lines) -> Array:
    """``(mass - chance) / (1 - chance)``; 0 where every row's keys are all it sees."""
    room = sums.rows - sums.chance
    above = np.where(room > 1e-9 * sums.rows, sums.mass - sums.chance, 0.0)
    return _ratio(above, np.where(sums.rows > 0, np.maximum(room, 1e-9), 0.0))


def _ratio(top: Array, bottom: Array) -> Array:
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)


def _add_lines(a: Lines, b: Lines) -> Lines:
    zero = max(a.zero, b.zero)
    size = zero + max(held.mass.shape[1] - held.zero for held in (a, b))
    a, b = a.aligned(zero, size), b.aligned(zero, size)
    return Lines(**{name: getattr(a, name) + getattr(b, name) for name in SUMS}, zero=zero)


def join_heads(parts: Sequence[PatternEvidence]) -> PatternEvidence:
    """Put the evidence of different heads of one layer and one input side by side."""
    first = parts[0]

    def joined(held: Sequence[Any]) -> Any:
        arrays = {name: np.concatenate([getattr(h, name) for h in held]) for name in SUMS}
        return replace(held[0], **arrays)

    plain: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in PLAIN
    }
    return replace(
        first,
        **plain,
        offsets=joined([part.offsets for part in parts]),
        columns=joined([part.columns for part in parts]),
        templates={
            name: joined([part.templates[name] for part in parts]) for name in first.templates
        },
        beside=joined([part.beside for part in parts]),
    )


def _pick(held: Any, heads: list[int]) -> Any:
    return replace(held, **{name: getattr(held, name)[heads] for name in SUMS})


def _as_dict(held: Lines | Sums) -> dict[str, Any]:
    """Sums of every head are listed once where all heads share them (counts and chances do)."""
    described: dict[str, Any] = {"zero": held.zero} if isinstance(held, Lines) else {}
    for name in SUMS:
        described[name] = getattr(held, name).tolist()
    if isinstance(held, Lines):
        for name in ("chance", "rows"):
            rows = described[name]
            if all(row == rows[0] for row in rows):
                described[name] = rows[:1]
    return described


def _as_lines(held: Mapping[str, Any], heads: int) -> Lines:
    arrays = {name: np.asarray(held[name], dtype=np.float64) for name in SUMS}
    size = arrays["mass"].size // max(1, heads)
    laid = {
        name: np.broadcast_to(array.reshape(min(heads, len(array)), size), (heads, size)).copy()
        for name, array in arrays.items()
    }
    return Lines(**laid, zero=int(held["zero"]))
