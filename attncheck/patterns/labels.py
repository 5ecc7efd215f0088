"""`HeadLabels`: the name of each head, with the ranked scores behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from attncheck.attention import head_name
from attncheck.attention.arguments import whole_number

__all__ = ["HeadLabel", "HeadLabels", "PatternScore"]


@dataclass(frozen=True)
class PatternScore:
    """How well one pattern describes one head.

    Attributes:
        pattern: Canonical name.
        mass: Mean share of attention on the pattern's keys; for ``uniform`` the share that even
            attention over the visible keys has in common with it.
        chance: What uniform attention over the visible keys would put there; for ``uniform``, where
            that would be all, what attention to a single key has in common with even attention.
        lift: ``(mass - chance) / (1 - chance)``.
        strength: Share of the head that the pattern explains beside the other patterns found in
            it; the ranking goes by this.
        parameter: What was searched for: offset, width, column (counted from the first visible
            key), number of segments; None for patterns without one.
    """

    pattern: str
    mass: float
    chance: float
    lift: float
    strength: float
    parameter: int | None = None

    def __str__(self) -> str:
        which = "" if self.parameter is None else f"({self.parameter})"
        return f"{self.pattern}{which} {self.mass:.2f} (chance {self.chance:.2f})"


@dataclass(frozen=True)
class HeadLabel:
    """What one head does.

    Attributes:
        layer: Number of the layer.
        head: Number of the head.
        label: A pattern of `PATTERNS` or a verdict of `VERDICTS`.
        margin: Strength of the winner less that of the strongest pattern of another kind.
        ranked: Scores, strongest first.
        note: Why, where the label alone does not say it.
    """

    layer: int
    head: int
    label: str
    margin: float
    ranked: tuple[PatternScore, ...] = ()
    note: str = ""

    @property
    def name(self) -> str:
        """The head as messages call it, ``"L5H1"``."""
        return head_name(self.layer, self.head)

    def score(self, pattern: str) -> PatternScore:
        """Return the score of one pattern.

        Raises:
            KeyError: It could not be scored on this head.
        """
        for score in self.ranked:
            if score.pattern == pattern:
                return score
        raise KeyError(f"{self.name} has no score for {pattern!r}")


class HeadLabels(Sequence[HeadLabel]):
    """Labels of many heads, in layer order.

    Example:
        >>> labels = HeadLabels([HeadLabel(0, 0, "uniform", 0.5), HeadLabel(0, 1, "mixed", 0.0)])
        >>> labels["L0H1"].label, labels.array().tolist()
        ('mixed', [['uniform', 'mixed']])
    """

    def __init__(self, labels: Sequence[HeadLabel]) -> None:
        self._labels = tuple(labels)

    @overload
    def __getitem__(self, which: int | str) -> HeadLabel: ...
    @overload
    def __getitem__(self, which: slice) -> HeadLabels: ...
    def __getitem__(self, which: int | str | slice) -> HeadLabel | HeadLabels:
        if isinstance(which, slice):
            return HeadLabels(self._labels[which])
        if not isinstance(which, str):
            return self._labels[whole_number(which, "head", "a number, name or slice")]
        for label in self._labels:
            if label.name == which:
                return label
        names = ", ".join(label.name for label in self._labels[:8])
        raise KeyError(f"no head {which!r}; the heads are {names}{', ...' * (len(self) > 8)}")

    def __len__(self) -> int:
        return len(self._labels)

    def __iter__(self) -> Iterator[HeadLabel]:
        return iter(self._labels)

    def __repr__(self) -> str:
        return f"HeadLabels({', '.join(f'{label.name} {label.label}' for label in self)})"

    def array(self) -> NDArray[np.str_]:
        """Labels as ``(layer, head)``, layers in order; short layers are filled with ``""``."""
        layers = sorted({label.layer for label in self})
        rows = [[label.label for label in self if label.layer == layer] for layer in layers]
        width = max(map(len, rows), default=0)
        return np.array([row + [""] * (width - len(row)) for row in rows], dtype=np.str_)
