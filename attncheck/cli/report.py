"""A scan's result as text for 80 columns and as JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from attncheck.patterns import HeadLabel, HeadLabels, PatternScore
from attncheck.profile import HeadProfile
from attncheck.tolerances import tolerance_for

__all__ = ["ScanResult", "invalid_heads", "render", "to_json"]

SCHEMA: Final = "attncheck.scan.1"
MOST_ROWS: Final = 32
"""More heads than this are cut to the clearest, unless all are asked for."""

MOST_NOTES: Final = 6


@dataclass
class ScanResult:
    """All that a scan found.

    Attributes:
        model: Name of the model.
        tokens: Tokens of each sequence, or None.
        profile: Measures of every head.
        labels: Patterns of every head, in the same order.
        note: What a reader should know about the prompt.
        findings: What is not valid about the attention.
        files: What was written.
    """

    model: str
    tokens: Sequence[Sequence[str | int]] | None
    profile: HeadProfile
    labels: HeadLabels
    note: str = ""
    findings: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


def invalid_heads(profile: HeadProfile) -> list[str]:
    """Name heads with rows off 1, or with weight on later keys in a causal layer."""
    found = []
    for layer in profile.layers:
        allowed = tolerance_for(layer.dtype)
        errors = layer.value("row_sum_error")
        future = layer.value("future_mass")
        for head, error, leaked in zip(layer.heads, errors, future, strict=True):
            name = f"L{layer.index}H{head}"
            if error > allowed.row_sum:
                found.append(f"{name}: a row misses sum 1 by {error:.2g} ({allowed.row_sum:.2g})")
            if layer.causal and leaked > allowed.atol:
                found.append(f"{name}: causal, yet {leaked:.2g} of its mass is on later keys")
    return found


def render(result: ScanResult, *, every: bool = False) -> str:
    """Write the result as text, at most 80 columns wide."""
    rows = _rows(result)
    total = len(rows)
    if total > MOST_ROWS and not every:
        rows = sorted(rows, key=lambda row: -_clarity(row[0]))[:MOST_ROWS]
    lines = [*_heading(result), "", _COLUMNS]
    lines += [_line(label, measures) for label, measures in rows]
    if len(rows) < total:
        lines.append(f"({total - len(rows)} heads less clear are not shown; --all shows every one)")
    lines += ["", _summary(result)]
    lines += [f"not valid: {found}" for found in result.findings]
    if result.files:
        lines += ["", "written", *(f"  {name}" for name in result.files)]
    return "\n".join(lines)


def to_json(result: ScanResult) -> dict[str, Any]:
    """Describe the result as data; what cannot be measured is None."""
    return {
        "schema": SCHEMA,
        "model": result.model,
        "note": result.note,
        "tokens": None if result.tokens is None else [list(row) for row in result.tokens],
        "heads": [_head_json(label, measures) for label, measures in _rows(result)],
        "patterns": dict(Counter(label.label for label in result.labels).most_common()),
        "findings": result.findings,
        "files": result.files,
    }


_COLUMNS: Final = (
    f"{'head':<8}{'pattern':<20}{'mass':>7}{'chance':>8}{'lift':>7}{'entropy':>9}{'sink':>7}"
    f"{'margin':>8}"
)


def _heading(result: ScanResult) -> list[str]:
    lines = [f"model   {result.model}"]
    if result.tokens is not None:
        first, more = result.tokens[0], len(result.tokens) - 1
        size = f"{len(first)} token{'s' * (len(first) != 1)}" + f", first of {more + 1}" * (
            more > 0
        )
        shown = ascii(" ".join(str(token) for token in first))
        room = 80 - len(f"prompt  {size}: ")
        lines.append(
            f"prompt  {size}: {shown if len(shown) <= room else shown[: room - 3] + '...'}"
        )
    if result.note:
        lines.append(f"        {result.note}")
    return lines


def _rows(result: ScanResult) -> list[tuple[HeadLabel, dict[str, float]]]:
    """Each head's label beside its measures."""
    places = [
        (layer, position) for layer in result.profile.layers for position in range(layer.n_heads)
    ]
    tables = [{name: layer.value(name) for name in layer.sums} for layer in result.profile.layers]
    table_of = {id(layer): t for layer, t in zip(result.profile.layers, tables, strict=True)}
    return [
        (label, {name: float(values[at]) for name, values in table_of[id(layer)].items()})
        for label, (layer, at) in zip(result.labels, places, strict=True)
    ]


def _score(label: HeadLabel) -> PatternScore | None:
    return next((score for score in label.ranked if score.pattern == label.label), None)


def _clarity(label: HeadLabel) -> float:
    score = _score(label)
    return -1.0 if score is None else score.lift


def _line(label: HeadLabel, measures: dict[str, float]) -> str:
    score = _score(label)
    name = label.label
    if score is not None and score.parameter is not None:
        name = f"{name}({score.parameter})"
    numbers = (score.mass, score.chance, score.lift) if score else (math.nan,) * 3
    mass, chance, lift = map(_number, numbers)
    entropy, sink = _number(measures["normalized_entropy"]), _number(measures["sink_mass"])
    return (
        f"{label.name:<8}{name:<20}{mass:>7}{chance:>8}{lift:>7}{entropy:>9}{sink:>7}"
        f"{_number(label.margin):>8}"
    )


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _summary(result: ScanResult) -> str:
    """Count the patterns, folded at 80 columns."""
    counted = Counter(label.label for label in result.labels).most_common()
    heads, layers = len(result.labels), len(result.profile.layers)
    text = f"{heads} head{'s' * (heads != 1)} in {layers} layer{'s' * (layers != 1)}:"
    lines = [text]
    for number, (name, count) in enumerate(counted):
        part = f" {count} {name}" + ("," if number + 1 < len(counted) else "")
        if len(lines[-1]) + len(part) > 80:
            lines.append("  ")
        lines[-1] += part
    return "\n".join([*lines, *_notes(result.labels)])


def _notes(labels: HeadLabels) -> list[str]:
    """Why heads have no single pattern, those with one reason in one line."""
    heads_of: dict[tuple[str, str], list[str]] = {}
    for label in labels:
        if label.note:
            heads_of.setdefault((label.label, label.note), []).append(label.name)
    lines = []
    for (verdict, note), heads in heads_of.items():
        shown = ", ".join(heads[:4]) + f" and {len(heads) - 4} more" * (len(heads) > 4)
        lines.append(f"  {shown}: {verdict}, {note}"[:80])
    more = [f"  ({len(lines) - MOST_NOTES} more notes in --json)"]
    return lines[:MOST_NOTES] + more * (len(lines) > MOST_NOTES)


def _head_json(label: HeadLabel, measures: dict[str, float]) -> dict[str, Any]:
    score = _score(label)
    return {
        "head": label.name,
        "layer": label.layer,
        "number": label.head,
        "pattern": label.label,
        "parameter": None if score is None else score.parameter,
        "mass": None if score is None else _plain(score.mass),
        "chance": None if score is None else _plain(score.chance),
        "lift": None if score is None else _plain(score.lift),
        "margin": _plain(label.margin),
        "note": label.note,
        "measures": {name: _plain(value) for name, value in measures.items()},
    }


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
