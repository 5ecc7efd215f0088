"""`HeadProfile`: the table of measures, layers by heads, that everything else is a view of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attncheck.attention import head_name
from attncheck.attention.arguments import words
from attncheck.patterns import HeadLabels, classify_evidence
from attncheck.profile.change import MeasureChange
from attncheck.profile.layer import Array, LayerProfile, counted
from attncheck.profile.storage import SCHEMA, read_json, require_schema, write_json

__all__ = ["HeadProfile"]

SHOWN = ("normalized_entropy", "effective_keys", "max_weight", "mean_distance", "sink_mass")
"""Measures of a table that nobody chose."""

MEASURES = "names of measures"
"""What messages ask for."""


class HeadProfile:
    """Measures of every head of a model, as sums that add up.

    Profiles of parts of the input, from other batches, processes or machines, `merge` into the
    profile of all of it: counts exactly, sums to rounding, whatever the lengths of the sequences.
    Nothing here is larger than ``heads * keys``.

    ``profile[measure]`` is an array ``(layer, head)``, NaN where a layer has fewer heads or no such
    value. Names of `METRICS` give the mean over rows, except ``row_sum_error``, which gives the
    maximum; ``".mean"`` and ``".max"`` give either. ``gini`` sorts every row, and is there only if
    it was asked for, ``also=["gini"]``; `measures` lists what is there. Names of `PATTERNS` give
    the mass of the pattern; ``".chance"`` and ``".lift"`` the rest, see
    `attncheck.patterns.PatternScore`; measures of `METRICS` have no chance level.

    Args:
        layers: Profile of each captured call, in execution order.

    Example:
        >>> import torch
        >>> from attncheck import profile_attention
        >>> weights = torch.stack([torch.eye(16), torch.full((16, 16), 1 / 16)])
        >>> profile = profile_attention(weights)
        >>> profile
        HeadProfile(1 layer, 2 heads, 16 rows each, float32)
        >>> profile["effective_keys"].round(6), profile["diagonal.lift"].round(6)
        (array([[ 1., 16.]]), array([[1., 0.]]))
    """

    def __init__(self, layers: Iterable[LayerProfile]) -> None:
        self.layers: tuple[LayerProfile, ...] = tuple(layers)
        if not self.layers:
            raise ValueError("layers: empty; a profile holds at least one layer")

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each layer."""
        return tuple(layer.name for layer in self.layers)

    @property
    def evaluators(self) -> dict[str, str]:
        """Which evaluator measured each layer, by its name, and why."""
        return {layer.name: layer.evaluator for layer in self.layers}

    @property
    def measures(self) -> tuple[str, ...]:
        """Measures that some layer has: metrics, then patterns."""
        return tuple(dict.fromkeys(name for layer in self.layers for name in layer.measures))

    def heads(self) -> tuple[str, ...]:
        """Name of each head, ``"L5H1"``, layer by layer."""
        return tuple(head_name(layer.index, head) for layer, head, _ in self._places())

    @property
    def not_finite(self) -> tuple[str, ...]:
        """Names of the heads whose weights were NaN or infinite somewhere.

        Their measures are NaN or infinite, and `classify` calls them ``undetermined``.
        """
        return tuple(
            head_name(layer.index, head)
            for layer in self.layers
            for head, good in zip(layer.heads, layer.finite, strict=True)
            if not good
        )

    def __getitem__(self, measure: str) -> Array:
        if not isinstance(measure, str):
            raise TypeError(
                f"measure: {measure!r} is {type(measure).__name__}; expected the name of one, such "
                "as profile['entropy']; layers are in profile.layers, heads in profile.head('L5H1')"
            )
        table = np.full((len(self.layers), max(layer.n_heads for layer in self.layers)), np.nan)
        refused: list[KeyError] = []
        for row, layer in zip(table, self.layers, strict=True):
            try:
                row[: layer.n_heads] = layer.value(measure)
            except KeyError as error:
                refused.append(error)
        if len(refused) == len(self.layers):
            raise refused[0]
        return table

    def __repr__(self) -> str:
        heads = len(self.heads())
        rows = [layer.n_rows for layer in self.layers]
        span = str(rows[0]) if len(set(rows)) == 1 else f"{min(rows)} to {max(rows)}"
        dtypes = "/".join(sorted({layer.dtype for layer in self.layers}))
        broken = f", {len(self.not_finite)} with NaN or infinity" if self.not_finite else ""
        return (
            f"HeadProfile({counted(len(self.layers), 'layer')}, {counted(heads, 'head')}{broken}, "
            f"{span} rows each, {dtypes})"
        )

    def head(self, name: str) -> dict[str, float]:
        """Return every measure of one head, by its name such as ``"L5H1"``.

        Raises:
            KeyError: There is no such head.
        """
        for layer, head, place in self._places():
            if head_name(layer.index, head) == name:
                return {measure: float(layer.value(measure)[place]) for measure in layer.measures}
        raise KeyError(f"no head {name!r}; the heads are {self.heads()[0]} to {self.heads()[-1]}")

    def table(self, measures: Sequence[str] | str = SHOWN) -> str:
        """Return a plain-text table, one line a head; ``-`` where a head has no such value.

        ``nan`` is what heads have whose weights held NaN.

        Args:
            measures: Names of measures, or one name.

        Raises:
            TypeError: ``measures`` are no names.
            KeyError: No such measure.
        """
        measures = words(measures, "measures", MEASURES)
        widths = [max(8, len(measure)) for measure in measures]
        columns = {measure: self[measure] for measure in measures}
        pairs = list(zip(measures, widths, strict=True))
        lines = [f"{'head':<7}" + "".join(f"  {measure:>{width}}" for measure, width in pairs)]
        for row, layer in enumerate(self.layers):
            for place, (head, finite) in enumerate(zip(layer.heads, layer.finite, strict=True)):
                empty = "-" if finite else "nan"
                cells = (_cell(columns[m][row, place], width, empty) for m, width in pairs)
                lines.append(f"{head_name(layer.index, head):<7}" + "".join(cells))
        return "\n".join(line.rstrip() for line in lines)

    def merge(self, other: HeadProfile) -> HeadProfile:
        """Return the profile of what both have seen.

        Raises:
            TypeError: ``other`` is no profile.
            ValueError: The two are not of the same layers and heads.
        """
        self._require_same_layers(other)
        pairs = zip(self.layers, other.layers, strict=True)
        return HeadProfile(mine.merge(theirs) for mine, theirs in pairs)

    @classmethod
    def merged(cls, profiles: Iterable[HeadProfile]) -> HeadProfile:
        """Return the profile of what all have seen, such as files of several processes.

        Raises:
            TypeError: One is no profile.
            ValueError: There is none, or they are not of the same layers and heads.

        Example:
            >>> import torch
            >>> from attncheck import profile_attention
            >>> parts = [profile_attention(torch.eye(n)) for n in (8, 10)]
            >>> HeadProfile.merged(parts)
            HeadProfile(1 layer, 1 head, 18 rows each, float32)
        """
        whole: HeadProfile | None = None
        for number, profile in enumerate(profiles):
            try:
                whole = profile if whole is None else whole.merge(profile)
            except (TypeError, ValueError) as error:
                error.add_note(f"profile {number}, counted from 0, does not add to those before")
                raise
        if whole is None:
            raise ValueError("profiles: empty; expected at least one")
        return whole

    def join_heads(self, other: HeadProfile) -> HeadProfile:
        """Put other heads of the same layers beside these: halves of a model, of one input.

        Heads of ``other`` are numbered after those held here, unless their numbers are others
        already.

        Raises:
            TypeError: ``other`` is no profile.
            ValueError: The two are not of the same layers on the same input, or are the same heads.
        """
        _require_profile(other)
        mine, theirs = ([layer.name for layer in p.layers] for p in (self, other))
        if mine != theirs:
            raise ValueError(
                f"other: holds {counted(len(theirs), 'layer')}, {_span(theirs)}; here "
                f"{counted(len(mine), 'layer')}, {_span(mine)}; both must be of the same model"
            )
        pairs = list(zip(self.layers, other.layers, strict=True))
        if all(one.measures_as(beside) for one, beside in pairs):
            raise ValueError(
                "other: its heads have the same numbers and measure exactly the same as those "
                "here, so they are no others; a rank that holds all heads has the whole profile"
            )
        return HeadProfile(one.join_heads(beside) for one, beside in pairs)

    def classify(self) -> HeadLabels:
        """Name what each head does, from the evidence held; see `attncheck.classify_heads`."""
        return classify_evidence(
            [layer.evidence for layer in self.layers],
            [layer.heads for layer in self.layers],
            [layer.index for layer in self.layers],
        )

    def compare(
        self, other: HeadProfile, measures: Sequence[str] | str | None = None
    ) -> list[MeasureChange]:
        """List what changed from this profile to another, largest `MeasureChange.size` first.

        Args:
            other: Profile of the same heads later, or in another model of the same shape.
            measures: Which ones to compare. Default: all that both profiles have.

        Raises:
            TypeError: ``other`` is no profile, or ``measures`` are no names.
            ValueError: The two don't hold the same heads.
            KeyError: A named measure is in neither.
        """
        self._require_same_layers(other)
        if measures is None:
            measures = [name for name in self.measures if name in other.measures]
        measures = words(measures, "measures", MEASURES)
        changes = []
        for measure in measures:
            before, after = self[measure], other[measure]
            for row, layer in enumerate(self.layers):
                for place, head in enumerate(layer.heads):
                    values = float(before[row, place]), float(after[row, place])
                    changes.append(MeasureChange(measure, layer.index, head, *values))
        changed = [change for change in changes if change.size > 0]
        return sorted(changed, key=lambda change: -change.size)

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as numbers, lists and dicts, ready for JSON; exact.

        What JSON has no number for (a model that computes NaN) is a word, such as ``"NaN"``.
        """
        return {"schema": SCHEMA, "layers": [layer.to_dict() for layer in self.layers]}

    @classmethod
    def from_dict(cls, held: Mapping[str, Any]) -> HeadProfile:
        """Read what `to_dict` returned.

        Raises:
            ValueError: It is no profile, is damaged, or is of another version.
        """
        try:
            require_schema(held)
            return cls(LayerProfile.from_dict(layer) for layer in held["layers"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"held: damaged profile ({error!r})") from None
        except ValueError as error:
            raise ValueError(f"held: {error}") from None

    def save(self, path: str | Path) -> Path:
        """Write the profile to one JSON file, whole or not at all; return its path.

        Missing folders are made.
        """
        return write_json(self.to_dict(), Path(path))

    @classmethod
    def load(cls, path: str | Path) -> HeadProfile:
        """Read what `save` wrote.

        Raises:
            ValueError: The file is not one that `save` wrote, or is damaged.
        """
        held = read_json(Path(path))
        try:
            return cls.from_dict(held)
        except ValueError as error:
            raise ValueError(f"path: {path}: {str(error).removeprefix('held: ')}") from None

    def _places(self) -> Iterator[tuple[LayerProfile, int, int]]:
        """Every head: its layer, its number, its place in the layer's arrays."""
        for layer in self.layers:
            for place, head in enumerate(layer.heads):
                yield layer, head, place

    def _require_same_layers(self, other: HeadProfile) -> None:
        _require_profile(other)
        if self.heads() != other.heads():
            raise ValueError(
                f"other: holds {counted(len(other.layers), 'layer')} with heads "
                f"{_span(other.heads())}, here {counted(len(self.layers), 'layer')} with heads "
                f"{_span(self.heads())}; both must be of the same model and capture"
            )


def _require_profile(other: Any) -> None:
    if not isinstance(other, HeadProfile):
        raise TypeError(f"other: is {type(other).__name__}; expected a HeadProfile")


def _span(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]}, ..., {names[-1]}"


def _cell(value: float, width: int, empty: str) -> str:
    return f"  {empty:>{width}}" if np.isnan(value) else f"  {value:>{width}.3f}"
