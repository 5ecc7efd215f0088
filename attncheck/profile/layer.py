"""`LayerProfile`: the measures of one layer's heads, as sums that add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from attncheck.metrics import METRICS
from attncheck.patterns import PATTERNS, PatternEvidence, canonical_name, join_heads
from attncheck.profile.storage import plain

__all__ = ["LayerProfile", "counted"]

Array: TypeAlias = npt.NDArray[np.float64]
Counts: TypeAlias = npt.NDArray[np.int64]

IDENTITY: Final[Mapping[str, type]] = MappingProxyType(
    {
        "name": str,
        "index": int,
        "call": int,
        "kind": str,
        "backend": str,
        "causal": bool,
        "dtype": str,
        "heads": tuple,
        "n_kv_heads": int,
    }
)
"""What two profiles of one layer have in common, whatever input they saw, and of which type."""


WAYS_OUT: Final[Mapping[str, str]] = MappingProxyType(
    {
        "causal": "; pass causal= when profiling parts",
        "kind": "; where lengths agree by chance, say what the layer is: kinds={'name': 'cross'}",
    }
)
"""What to do where a field was found otherwise in other input."""


def counted(count: int, noun: str) -> str:
    """Return a number of things in words.

    Args:
        count: How many.
        noun: What one of them is called.

    Example:
        >>> counted(1, "head"), counted(2, "head")
        ('1 head', '2 heads')
    """
    return f"{count} {noun}{'s' * (count != 1)}"


@dataclass(frozen=True, eq=False, repr=False)
class LayerProfile:
    """Measures of the heads of one layer over all the rows seen so far.

    Attributes:
        name: Module path or ``"layer 0"``.
        index: Number of the layer, the ``L`` of ``L5H1``.
        call: How often this module had been called before, in the same capture.
        kind: ``"self"``, ``"cross"`` or ``"unknown"``.
        backend: What computed the attention.
        causal: Whether queries saw no later key.
        dtype: The coarser of what the model computed in and of the weights, ``"float32"``.
        heads: The model's numbers of the heads.
        n_kv_heads: Heads of key and value.
        sums: Sum over rows by metric, each ``(head,)``, float64.
        counts: Number of rows with a value by metric, each ``(head,)``, int64.
        maxima: Largest value of a row by metric, each ``(head,)``; ``-inf`` without a row.
        evidence: What patterns are scored from.
        evaluator: Which evaluator measured it, and why: ``"blocked: query and key are held"``.
    """

    name: str
    index: int
    call: int
    kind: str
    backend: str
    causal: bool
    dtype: str
    heads: tuple[int, ...]
    n_kv_heads: int
    sums: Mapping[str, Array]
    counts: Mapping[str, Counts]
    maxima: Mapping[str, Array]
    evidence: PatternEvidence
    evaluator: str = ""

    @property
    def n_heads(self) -> int:
        """Number of heads held."""
        return len(self.heads)

    @property
    def n_rows(self) -> int:
        """Number of rows that a head was measured over, at most."""
        return max(int(held.max()) for held in self.counts.values())

    def __repr__(self) -> str:
        rest = ", ".join(filter(None, (self.dtype, self.kind, "causal" * self.causal)))
        return (
            f"LayerProfile({self.index}: {self.name!r}, {counted(self.n_heads, 'head')}, "
            f"{counted(self.n_rows, 'row')} each, {rest})"
        )

    @property
    def finite(self) -> npt.NDArray[np.bool_]:
        """Heads whose weights were all numbers, ``(head,)``."""
        sums = np.stack([*self.sums.values(), np.zeros(self.n_heads)])
        return np.asarray(np.isfinite(sums).all(0) & self.evidence.finite)

    @property
    def measures(self) -> tuple[str, ...]:
        """Names that `value` knows here: metrics, then patterns."""
        return (*self.sums, *self.evidence.names)

    def value(self, measure: str) -> Array:
        """Return a measure of each head, ``(head,)``; see `HeadProfile` for the names.

        Raises:
            KeyError: No such measure, or this layer cannot have it.
        """
        name, _, part = measure.partition(".")
        if name in self.sums:
            return self._metric(name, part or METRICS[name].reduce)
        return self._pattern(name, part or "mass")

    def _metric(self, name: str, part: str) -> Array:
        held: Array
        if part == "mean":
            count = self.counts[name]
            empty = np.full(len(count), np.nan)
            held = np.divide(self.sums[name], count, out=empty, where=count > 0)
        elif part == "max":
            held = np.where(self.counts[name] > 0, self.maxima[name], np.nan)
        else:
            raise KeyError(f"{name} has .mean and .max, no .{part}")
        return held

    def _pattern(self, name: str, part: str) -> Array:
        if part not in ("mass", "chance", "lift"):
            raise KeyError(f"{name} has .mass, .chance and .lift, no .{part}")
        try:
            name = canonical_name(name)
        except ValueError:
            if name in METRICS:
                raise KeyError(
                    f"{name} was not measured, since it sorts every row; "
                    f"pass also=[{name!r}] to profile_attention, profile_model or profile_dataset"
                ) from None
            known = ", ".join([*self.sums, *PATTERNS])
            raise KeyError(f"no measure {name!r}; the measures are {known}") from None
        try:
            found: Array = getattr(self.evidence, part)(name)
        except ValueError as error:
            raise KeyError(str(error)) from None
        return found

    def merge(self, other: LayerProfile) -> LayerProfile:
        """Add what the same layer did on other input.

        Raises:
            ValueError: The two are not of the same layer.
        """
        if self.causal != other.causal and 1 in (self._n_keys, other._n_keys):
            if self._n_keys == 1:  # where one token sees one token, either is true
                return self._directed(other.causal).merge(other)
            return self.merge(other._directed(self.causal))
        self._require_same(other, tuple(IDENTITY))
        return replace(
            self,
            sums=_combine(np.add, self.sums, other.sums),
            counts=_combine(np.add, self.counts, other.counts),
            maxima=_combine(np.maximum, self.maxima, other.maxima),
            evidence=self.evidence.merge(other.evidence),
            evaluator=_both(self.evaluator, other.evaluator),
        )

    @property
    def _n_keys(self) -> int:
        """Number of keys of the longest sequence seen."""
        return int(self.evidence.columns.mass.shape[1])

    def _directed(self, causal: bool) -> LayerProfile:
        return replace(self, causal=causal, evidence=replace(self.evidence, causal=causal))

    def join_heads(self, other: LayerProfile) -> LayerProfile:
        """Put other heads of the same layer beside these, measured on the same input.

        Raises:
            ValueError: The two are not of the same layer, or not of the same input.
        """
        self._require_same(other, tuple(set(IDENTITY) - {"heads", "n_kv_heads"}))
        if _input_of(self.evidence) != _input_of(other.evidence):
            raise ValueError(
                f"other: {other.name} saw other input; heads side by side come from one input"
            )
        beside = other.heads
        if not set(beside).isdisjoint(self.heads):
            beside = tuple(head + max(self.heads) + 1 for head in beside)
        return replace(
            self,
            heads=self.heads + beside,
            n_kv_heads=self.n_kv_heads + other.n_kv_heads,
            sums=_combine(_beside, self.sums, other.sums),
            counts=_combine(_beside, self.counts, other.counts),
            maxima=_combine(_beside, self.maxima, other.maxima),
            evidence=join_heads([self.evidence, other.evidence]),
        )

    def measures_as(self, other: LayerProfile) -> bool:
        """Whether heads of the same numbers measure exactly the same here and there."""
        pairs = [
            (getattr(self, field)[metric], held[metric])
            for field in ("sums", "counts", "maxima")
            for held in (getattr(other, field),)
            for metric in getattr(self, field)
            if metric in held
        ]
        return self.heads == other.heads and all(
            np.array_equal(mine, theirs, equal_nan=True) for mine, theirs in pairs
        )

    def _require_same(self, other: LayerProfile, fields: tuple[str, ...]) -> None:
        for field in fields:
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine != theirs:
                way_out = WAYS_OUT.get(field, "")
                raise ValueError(
                    f"other: {field} of {other.name} is {theirs!r}, here {mine!r}; only profiles "
                    f"of the same layers add up{way_out}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as numbers, lists and dicts, ready for JSON; exact.

        What JSON has no number for is a word: ``"NaN"``, ``"Infinity"``, ``"-Infinity"``.
        """
        described = {field: getattr(self, field) for field in IDENTITY}
        described["heads"] = list(self.heads)
        described["metrics"] = {
            name: {
                "sum": plain(self.sums[name].tolist()),
                "count": self.counts[name].tolist(),
                "max": [None if m == -np.inf else plain(m) for m in self.maxima[name].tolist()],
            }
            for name in self.sums
        }
        described["evaluator"] = self.evaluator
        described["evidence"] = plain(self.evidence.to_dict())
        return described

    @classmethod
    def from_dict(cls, held: Mapping[str, Any]) -> LayerProfile:
        """Read what `to_dict` returned.

        Raises:
            ValueError: A field is missing, of the wrong type or of the wrong length.
        """
        missing = [name for name in (*IDENTITY, "metrics", "evidence") if name not in held]
        if missing:
            raise ValueError(f"a layer lacks {', '.join(missing)}")
        identity = {name: held[name] for name in IDENTITY} | {"heads": tuple(held["heads"])}
        _require_types(identity)
        metrics = held["metrics"]
        if not metrics:
            raise ValueError("a layer holds no metrics")
        unknown = set(metrics) - set(METRICS)
        if unknown:
            raise ValueError(f"unknown metrics {', '.join(sorted(unknown))}: from a later version?")
        profile = cls(
            **identity,
            sums={name: _sums(m["sum"]) for name, m in metrics.items()},
            counts={name: _counts(m["count"]) for name, m in metrics.items()},
            maxima={name: _maxima(m["max"]) for name, m in metrics.items()},
            evidence=PatternEvidence.from_dict(held["evidence"]),
            evaluator=str(held.get("evaluator", "")),
        )
        profile._require_lengths()
        return profile

    def _require_lengths(self) -> None:
        arrays = [*self.sums.values(), *self.counts.values(), *self.maxima.values()]
        shapes = {array.shape for array in arrays} | {(self.evidence.n_heads,)}
        if shapes != {(self.n_heads,)}:
            raise ValueError(f"{self.name} names {self.n_heads} heads but holds {sorted(shapes)}")


def _both(mine: str, theirs: str) -> str:
    """Name each evaluator once."""
    named = [*mine.split("; "), *theirs.split("; ")]
    return "; ".join(dict.fromkeys(name for name in named if name))


def _combine(operation: Any, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    if set(mine) != set(theirs):
        raise ValueError(f"other: measured {sorted(theirs)}, here {sorted(mine)}")
    return {name: operation(array, theirs[name]) for name, array in mine.items()}


def _beside(one: Any, other: Any) -> Any:
    return np.concatenate([one, other])


def _input_of(evidence: PatternEvidence) -> tuple[object, ...]:
    """What all heads have in common that saw one input: sizes, sequences, patterns of tokens."""
    sizes = evidence.offsets.mass.shape[1], evidence.offsets.zero, evidence.columns.mass.shape[1]
    return (*sizes, evidence.sequences.max(initial=0), sorted(evidence.templates))


def _require_types(identity: Mapping[str, Any]) -> None:
    for name, kind in IDENTITY.items():
        if type(identity[name]) is not kind:
            raise ValueError(f"{name} is {identity[name]!r}, expected {kind.__name__}")
    if any(type(head) is not int for head in identity["heads"]):
        raise ValueError(f"heads are {list(identity['heads'])}, expected numbers")


def _sums(values: list[float | str]) -> Array:
    if None in values:
        raise ValueError(f"a sum is missing in {values}")
    return np.array(values, dtype=np.float64)


def _counts(values: list[int]) -> Counts:
    if any(type(value) is not int or value < 0 for value in values):
        raise ValueError(f"counts are {values}, expected numbers of rows")
    return np.array(values, dtype=np.int64)


def _maxima(values: list[float | str | None]) -> Array:
    return np.array([-np.inf if value is None else value for value in values], dtype=np.float64)
