"""What the battery found: data first, text from it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import TextWrapper
from typing import Any, Final

__all__ = ["ConformanceReport", "Failure", "Outcome", "render_failure"]

WRAPPER: Final = TextWrapper(
    width=98, initial_indent="  alike     ", subsequent_indent=" " * 12, break_on_hyphens=False
)


@dataclass(frozen=True)
class Failure:
    """One property that does not hold, on the smallest input that shows it.

    Attributes:
        id: The property.
        reason: Why the property matters.
        violated: What was violated, one line.
        severity: How far: times the allowed error; infinite for crashes and NaN.
        input: The smallest failing input, one line.
        evidence: Position, expected, got, allowed error.
        mechanism: The likely mistake, where the output points to one; otherwise empty.
        script: Python of under 15 lines that reproduces it with torch alone.
        case: The input as data.
        repeats: Whether the input fails on its own; if not, an earlier call mattered.
    """

    id: str
    reason: str
    violated: str
    severity: float
    input: str
    evidence: dict[str, str]
    mechanism: str
    script: str
    case: dict[str, Any]
    repeats: bool = True


@dataclass(frozen=True)
class Outcome:
    """How one property came out.

    Attributes:
        id: The property.
        family: What it is about.
        status: ``"passed"``, ``"failed"``, ``"not supported"``, ``"expected failure"`` or
            ``"unexpected pass"``.
        cases: Inputs tried.
        refused: Inputs that the implementation or its declaration refused.
        seconds: Time spent.
        failure: The failure, if any.
        note: The reason given for an expected failure.
    """

    id: str
    family: str
    status: str
    cases: int
    refused: int
    seconds: float
    failure: Failure | None = None
    note: str = ""


@dataclass
class ConformanceReport:
    """The verdict of a battery.

    Attributes:
        implementation: Name of the function.
        effort: How much was tried.
        seed: Which inputs were tried.
        outcomes: One for each property, in the order in which they ran.
        unsupported: What was refused, in the implementation's words, with the number of inputs.

    Example:
        >>> ConformanceReport("my_attention", "quick", 0).passed
        True
    """

    implementation: str
    effort: str
    seed: int
    outcomes: list[Outcome] = field(default_factory=list)
    unsupported: Counter[str] = field(default_factory=Counter)

    @property
    def failures(self) -> list[Failure]:
        """Failures of properties that were not expected to fail, worst first."""
        found = [o.failure for o in self.outcomes if o.status == "failed" and o.failure]
        return sorted(found, key=lambda failure: -failure.severity)

    def groups(self) -> list[list[Failure]]:
        """Return the failures, those together that have one likely cause, or crash alike."""
        found: dict[str, list[Failure]] = {}
        for failure in self.failures:
            crash = failure.violated if failure.violated.startswith("raised ") else ""
            cause = failure.mechanism or crash or failure.id
            found.setdefault(cause, []).append(failure)
        return list(found.values())

    @property
    def passed(self) -> bool:
        """Whether nothing failed, and nothing that was expected to fail passed."""
        return not any(o.status in ("failed", "unexpected pass") for o in self.outcomes)

    @property
    def seconds(self) -> float:
        """Time spent in all properties."""
        return sum(outcome.seconds for outcome in self.outcomes)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data for JSON; infinities are written as text."""
        data = {
            "implementation": self.implementation,
            "effort": self.effort,
            "seed": self.seed,
            "passed": self.passed,
            "unsupported": dict(self.unsupported.most_common()),
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
        }
        for outcome in data["outcomes"]:  # type: ignore[attr-defined]
            failure = outcome["failure"]
            if failure and failure["severity"] == float("inf"):
                failure["severity"] = "inf"
        return data

    def save(self, path: str | Path) -> None:
        """Write the report as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def summary(self) -> str:
        """Return the verdict in one line."""
        counts = Counter(outcome.status for outcome in self.outcomes)
        cases = sum(outcome.cases for outcome in self.outcomes)
        parts = [f"{number} {status}" for status, number in counts.most_common()]
        return f"{self.implementation}: {', '.join(parts)}; {cases} inputs, {self.seconds:.1f} s"

    def __str__(self) -> str:
        lines = [self.summary()]
        if self.unsupported:
            lines += ["", "not supported:"]
            lines += [f"  {n:5d} x {text}" for text, n in self.unsupported.most_common(12)]
        for alike in self.groups():
            lines.append(f"\n{render_failure(alike[0])}")
            if alike[1:]:
                also = ", ".join(failure.id for failure in alike[1:])
                lines.append(WRAPPER.fill(also))
        for outcome in self.outcomes:
            if outcome.status == "unexpected pass":
                lines.append(f"\n{outcome.id}: expected to fail ({outcome.note}), but passes")
        return "\n".join(lines)


def render_failure(failure: Failure) -> str:
    """Return the verdict on one failure as text, the fact first."""
    lines = [f"{failure.id}: {failure.violated}", f"  why       {failure.reason}"]
    if failure.mechanism:
        lines.append(f"  likely    {failure.mechanism}")
    lines.append(f"  input     {failure.input}")
    if failure.evidence:
        facts = ", ".join(f"{name} {value}" for name, value in failure.evidence.items())
        lines.append(f"  evidence  {facts}")
    if not failure.repeats:
        lines.append("  note      fails only after earlier calls: state is kept between calls")
    if failure.script:
        lines += ["  script", *(f"    {line}" for line in failure.script.splitlines())]
    return "\n".join(lines)
