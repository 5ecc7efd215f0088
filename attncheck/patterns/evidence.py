"""`PatternEvidence`: what the detector reads instead of the matrix, as sums that add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from attncheck.patterns.catalogue import PATTERNS, canonical_name
from attncheck.patterns.reading import counted, flag, numbers, part, require_parts, squared
from attncheck.patterns.search import best
from attncheck.patterns.spans import Spans
from attncheck.patterns.sums import Array, Lines, Sums, add, join, lift, pick, ratio

__all__ = ["PatternEvidence", "join_heads"]

OFFSET_OF: Final = {"diagonal": 0, "previous_token": 1, "next_token": -1}
"""Patterns that are one diagonal, and which."""


WAYS_OUT: Final = {
    "tokens": "tokens: pass tokens=, strings or ids, one per key",
    "delimiters": "delimiters: pass tokens= as strings, or tokens= as ids with delimiters=",
}
"""What to do about what a pattern requires."""


@dataclass(frozen=True, eq=False)
class PatternEvidence:
    """Everything that naming the heads of one layer needs, as float64 sums.

    Sums over rows, sequences and calls add up: the evidence of a batch is the merged evidence of
    its parts. Rows count if they carry attention and see at least two keys; what hidden keys hold
    is left out.

    Attributes:
        rows: Usable rows, ``(head,)``.
        spans: The stretches of rows and keys of the sequences they came from.
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
        resting: Sums of the first visible key over the rows that have a target of a pattern of
            tokens, by that pattern; the first key left out where it is a target.
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
    inverse: Array
    square: Array
    entropy: Array
    capacity: Array
    overlap: Array
    positional: bool
    causal: bool
    spans: Spans
    offsets: Lines
    columns: Lines
    templates: Mapping[str, Sums]
    resting: Mapping[str, Sums]
    beside: Sums

    @property
    def n_heads(self) -> int:
        """Number of heads."""
        return int(self.rows.shape[0])

    @property
    def sequences(self) -> Array:
        """Sequences that the rows came from, ``(head,)``."""
        return self.spans.sequences

    @property
    def names(self) -> tuple[str, ...]:
        """Patterns that can be scored from this evidence."""
        return tuple(name for name in PATTERNS if self._knows(name))

    def _knows(self, name: str) -> bool:
        entry = PATTERNS[name]
        if entry.requires == "positions":
            return self.positional and not (self.causal and entry.direction == "bidirectional")
        return entry.requires == "keys" or name in self.templates

    def _lacking(self, name: str) -> str:
        """Say what a pattern needs that is not there, and how to give it."""
        entry = PATTERNS[name]
        if entry.direction == "bidirectional" and self.causal and self.positional:
            return "later keys, which causal attention does not see"
        if not self.positional:
            return "positions that queries and keys share: self-attention, every query or causal"
        return WAYS_OUT[entry.requires]

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
                f"pattern: {name!r} cannot be scored here; it needs {self._lacking(name)}. "
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
        return best(self, name)[0]

    def mass(self, name: str) -> Array:
        """Mean share of attention on the keys of a pattern, ``(head,)``; NaN without a row.

        For ``uniform`` it is the share that even attention would give as well, per row.
        """
        sums = self.sums(name)
        return ratio(sums.mass, sums.rows)

    def chance(self, name: str) -> Array:
        """The mass that uniform attention over the visible keys would have, ``(head,)``.

        For ``uniform`` the roles are turned: it is the overlap that one-hot attention would have.
        """
        sums = self.sums(name)
        return ratio(sums.chance, sums.rows)

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
            spans=self.spans.merge(other.spans),
            offsets=self.offsets.merge(other.offsets),
            columns=self.columns.merge(other.columns),
            templates={
                name: add(held, other.templates[name]) for name, held in self.templates.items()
            },
            resting={name: add(held, other.resting[name]) for name, held in self.resting.items()},
            beside=add(self.beside, other.beside),
        )

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Heads whose rows hold numbers; NaN or infinite weights make NaN of what they touch."""
        return np.asarray(np.isfinite(self.square) & np.isfinite(self.entropy))

    def fitted(self) -> PatternEvidence:
        """Leave out lines that no sequence is long enough for: room that padding made."""
        ahead, behind, keys = self.spans.reach
        return replace(
            self,
            offsets=self.offsets.cropped(ahead, behind),
            columns=self.columns.cropped(0, max(1, keys)),
        )

    def select(self, heads: list[int]) -> PatternEvidence:
        """Return the evidence of some heads, in the order given."""
        return replace(
            self,
            **{name: getattr(self, name)[heads] for name in PLAIN},
            spans=self.spans.select(heads),
            offsets=pick(self.offsets, heads),
            columns=pick(self.columns, heads),
            templates={name: pick(held, heads) for name, held in self.templates.items()},
            resting={name: pick(held, heads) for name, held in self.resting.items()},
            beside=pick(self.beside, heads),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the evidence as numbers, strings, lists and dicts, ready for JSON.

        Exact, but for the variances of single lines, which are rounded to float32. The sums by
        offset and by column, most of the evidence, are packed: 1.3 MB for 144 heads of 512 tokens.
        """
        return {
            **{name: getattr(self, name).tolist() for name in PLAIN},
            "positional": self.positional,
            "causal": self.causal,
            "spans": self.spans.to_dict(),
            "offsets": self.offsets.to_dict(),
            "columns": self.columns.to_dict(),
            "templates": {name: held.to_dict() for name, held in self.templates.items()},
            "resting": {name: held.to_dict() for name, held in self.resting.items()},
            "beside": self.beside.to_dict(),
        }

    @classmethod
    def from_dict(cls, held: Mapping[str, Any]) -> PatternEvidence:
        """Read what `to_dict` returned.

        Raises:
            ValueError: A field is missing, of another type or shape, or holds what cannot be.
        """
        what = "pattern evidence"
        held = require_parts(held, tuple(field.name for field in fields(cls)), what)
        heads = len(numbers(held["rows"], (None,), "rows"))
        plain = {name: numbers(held[name], (heads,), name) for name in PLAIN}
        for name in ("rows", "inverse", "capacity"):
            counted(plain[name], name)
        squared(plain["square"], "square")
        templates, resting, beside = (part(held, n) for n in ("templates", "resting", "beside"))
        unknown = set(templates) - set(PATTERNS)
        if unknown or set(resting) != set(templates) - {"block"}:
            raise ValueError(
                f"held: templates are {sorted(templates)}, resting {sorted(resting)}; expected "
                "patterns, and the same but for block"
            )
        evidence = cls(
            **plain,
            positional=flag(held, "positional"),
            causal=flag(held, "causal"),
            spans=Spans.from_dict(held["spans"], heads),
            offsets=Lines.from_dict(held["offsets"], heads, "offsets"),
            columns=Lines.from_dict(held["columns"], heads, "columns"),
            templates={name: Sums.from_dict(sums, heads, name) for name, sums in templates.items()},
            resting={
                name: Sums.from_dict(sums, heads, f"{name} resting")
                for name, sums in resting.items()
            },
            beside=Sums.from_dict(beside, heads, "beside", counts=()),
        )
        if evidence.positional != ("block" in templates) or not evidence.columns.mass.shape[1]:
            raise ValueError("held: the blocks of attention without distances, or no columns")
        return evidence


PLAIN: Final = ("rows", "inverse", "square", "entropy", "capacity", "overlap")


def join_heads(parts: Sequence[PatternEvidence]) -> PatternEvidence:
    """Put the evidence of different heads of one layer and one input side by side."""
    first = parts[0]
    plain: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in PLAIN
    }
    return replace(
        first,
        **plain,
        spans=Spans.join([part.spans for part in parts]),
        offsets=join([part.offsets for part in parts]),
        columns=join([part.columns for part in parts]),
        templates={
            name: join([part.templates[name] for part in parts]) for name in first.templates
        },
        resting={name: join([part.resting[name] for part in parts]) for name in first.resting},
        beside=join([part.beside for part in parts]),
    )
