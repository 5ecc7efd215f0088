"""What was found on a model: data first, text from it."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from attncheck.checks.finding import Finding
from attncheck.checks.render import render

__all__ = ["UNCHECKED", "ModelReport", "Outcome"]

BROKEN: Final = ("failed", "error", "unexpected pass")
WIDTH: Final = 78

UNCHECKED: Final = "not checked"
"""Status of a promise of which could not be told whether the model makes it."""


@dataclass(frozen=True)
class Outcome:
    """How one promise came out.

    Attributes:
        id: The promise.
        status: ``"passed"``, ``"failed"``, ``"error"`` (the model raised), ``"not applicable"``,
            ``"not checked"`` (it could not be told whether it applies), ``"expected failure"`` or
            ``"unexpected pass"``.
        seconds: Time spent.
        note: Why it does not apply, what was raised, why it was expected to fail, or that it was
            inferred that it applies.
        finding: What was found; None where nothing was judged.
    """

    id: str
    status: str
    seconds: float
    note: str = ""
    finding: Finding | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        held = {"id": self.id, "status": self.status, "seconds": self.seconds, "note": self.note}
        return {**held, "finding": None if self.finding is None else self.finding.to_dict()}


@dataclass
class ModelReport:
    """The verdict on a model.

    Attributes:
        model: Its name.
        subject: Its dtype, inputs, kind and backend.
        outcomes: One for each promise, in the order in which they were tried.

    Example:
        >>> ModelReport("Decoder", "f32").passed
        True
    """

    model: str
    subject: str
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def failures(self) -> list[Outcome]:
        """Promises that are broken, or could not be tried because the model raised."""
        return [outcome for outcome in self.outcomes if outcome.status in BROKEN]

    @property
    def passed(self) -> bool:
        """Whether every promise that applies is kept."""
        return not self.failures

    @property
    def unchecked(self) -> list[str]:
        """One line for each promise of which could not be told whether the model makes it."""
        return [
            f"{self.model}: {outcome.id} was not checked: {outcome.note}"
            for outcome in self.outcomes
            if outcome.status == UNCHECKED
        ]

    @property
    def seconds(self) -> float:
        """Time spent in all."""
        return sum(outcome.seconds for outcome in self.outcomes)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data for JSON."""
        return {
            "model": self.model,
            "subject": self.subject,
            "passed": self.passed,
            "outcomes": [outcome.to_dict() for outcome in self.outcomes],
        }

    def save(self, path: str | Path) -> None:
        """Write the report as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def summary(self) -> str:
        """Return the verdict in one line."""
        counts = Counter(outcome.status for outcome in self.outcomes)
        return f"{self.model}: " + ", ".join(f"{n} {status}" for status, n in counts.most_common())

    def __str__(self) -> str:
        lines = [self.summary(), f"  {self.subject}", ""]
        for line in self.unchecked:
            lines += [*textwrap.wrap(line, WIDTH), ""]
        wide = max((len(outcome.id) for outcome in self.outcomes), default=0)
        for outcome in self.outcomes:
            told = outcome.finding.verdict if outcome.finding else ""
            text = "; ".join(part for part in (told, outcome.note) if part)
            start = f"  {outcome.id:{wide}}  {outcome.status:14}  "
            lines += textwrap.wrap(
                start + text, WIDTH, subsequent_indent=" " * len(start), break_long_words=False
            )
        for text, ids in self._told().items():
            verdict, *rest = text.split("\n")
            lines += ["", *textwrap.wrap(f"{', '.join(ids)}: {verdict}", WIDTH), *rest]
        return "\n".join(lines)

    def _told(self) -> dict[str, list[str]]:
        """The text of each failure, with the promises that it is about: NaN breaks all of them."""
        told: dict[str, list[str]] = {}
        for outcome in self.failures:
            if outcome.finding is not None and not outcome.finding.passed:
                told.setdefault(render(outcome.finding), []).append(outcome.id)
        return told
