"""The text of a failed regression, made from data alone."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from attncheck.checks.text import columns_of, safe
from attncheck.regression.changes import HeadChange, Judgement, MeasureMove
from attncheck.regression.environment import Environment
from attncheck.regression.record import SHARES, HeadRecord
from attncheck.regression.tolerance import DIVERGENCE, VARIATION, unit_of

__all__ = ["COLUMNS", "Place", "Row", "change_message", "headline", "missing_message", "rows_of"]

COLUMNS: Final = ("head", "measure", "baseline", "now", "change", "allowed")
WIDTHS: Final = (4, 7, 8, 8, 7, 7)
"""Least width of each column; the first two to the left, numbers to the right."""

HEADLINE: Final = 48
"""Columns of the verdict: what a summary line has room for."""

ROWS: Final = 5
"""Rows of a table; the rest is counted."""

WORDS: Final = {
    "by_distance": "where from",
    "by_key": "where to",
    VARIATION: "moved mass",
    DIVERGENCE: "divergence",
    "row_sum_error": "row sum",
    "normalized_entropy": "evenness",
    "participation_ratio": "key ratio",
}
"""Names that a table has no room for, or that need words."""

TWICE: Final = "two checks in one test: pass name="
"""Verdict where only an earlier check of the same test disagrees."""

REPEATS: Final = {
    "passed": "an earlier check of this test passed",
    "recorded": "an earlier check of this test is recorded",
}
"""What a check that repeats another one has against it; no update accepts both."""

EVENNESS: Final = (
    "entropy",
    "normalized_entropy",
    "effective_keys",
    "participation_ratio",
    "max_weight",
    "gini",
)
"""Measures of one thing, of which a table shows one."""


@dataclass(frozen=True)
class Place:
    """Where a baseline lies, and how to accept what came instead.

    Attributes:
        file: As a person would type it.
        accept: The command.
        variant: Which variant was chosen among how many, in words; empty for the only file.
    """

    file: str
    accept: str
    variant: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the table, as text."""

    head: str
    measure: str
    before: str
    after: str
    change: str = ""
    allowed: str = ""
    unit: str = ""


def accept_command(nodeid: str) -> str:
    """Return the command that accepts what one test found.

    Example:
        >>> accept_command("tests/test_a.py::test_x[gpt2]")
        "pytest 'tests/test_a.py::test_x[gpt2]' --attncheck-update"
    """
    return f"pytest {shlex.quote(nodeid)} --attncheck-update"


def headline(judgement: Judgement) -> str:
    """Return the verdict with its count."""
    total = judgement.total
    names = [one.name for one in judgement.changed]
    if names:
        listed = ", ".join(names)
        first = f"{len(names)} of {total} heads changed: "
        while len(first + listed) > HEADLINE and names:
            names.pop()
            listed = ", ".join([*names, "..."])
        return first + listed
    if judgement.missing:
        gone = len(judgement.missing)
        return f"{gone} of {total} heads {'is' if gone == 1 else 'are'} gone"
    if judgement.extra:
        extra = len(judgement.extra)
        return f"{extra} {'head is' if extra == 1 else 'heads are'} not in the baseline"
    return f"{total} heads match"


def change_message(
    judgement: Judgement,
    place: Place,
    recorded: Environment,
    now: Environment,
    *,
    other_input: bool = False,
    repeats: Literal["passed", "recorded"] | None = None,
) -> str:
    """Say which heads changed, by how much, and how to accept it.

    Args:
        judgement: What was found.
        place: Of the baseline.
        recorded: Where the baseline was made.
        now: Where the test runs.
        other_input: Whether the input is known to be another one.
        repeats: What an earlier check of the same name in the same test came to: it passed, or it
            is what will be recorded.
    """
    rows = [row for one in judgement.changed for row in rows_of(one)]
    lines = [TWICE if repeats == "recorded" else headline(judgement), ""]
    if rows:
        lines += _table(rows)
    unseen = [one.name for one in judgement.changed]
    left = len(unseen) - len({row.head for row in rows[:ROWS] if row.head})
    if left:
        lines.append(f"  +{left} more")
    for word, names in (("gone", judgement.missing), ("not in it", judgement.extra)):
        if names:
            lines.append(f"  {word}  " + ", ".join(names[:6]) + (", ..." if names[6:] else ""))
    same = judgement.total - len(judgement.changed) - len(judgement.missing)
    drift = judgement.drift
    moved = f", {drift.heads} of them drifted by up to {drift.size:.2g}" if drift.heads else ""
    lines.append(f"  {same} of {judgement.total} heads match{moved}")
    lines += [f"  {_permuted(cycle)}" for cycle in judgement.permuted[:2]]
    where = "the same" if now == recorded else str(now)
    seen = f" ({place.variant})" if place.variant else ""
    lines += [
        "",
        f"  baseline  {safe(place.file)}",
        f"  recorded  {recorded}{seen};  now {where}",
    ]
    if other_input:
        lines.append("  input     not the one that was recorded")
    if repeats is None:
        lines.append(f"  accept    {safe(place.accept)}")
    else:
        lines.append(f"  twice     {REPEATS[repeats]}; give each name=")
    return "\n".join(lines)


def missing_message(heads: Sequence[HeadRecord], place: Place, now: Environment) -> str:
    """Say that there is no baseline, what it would hold, and how to record it."""
    rows = [_recorded(head) for head in heads]
    number = f"{len(heads)} head" + "s" * (len(heads) != 1)
    lines = [f"no baseline: {number} not compared", ""]
    lines += _columns(("head", "label", "entropy", "max weight"), rows[:ROWS])
    if rows[ROWS:]:
        lines.append(f"  +{len(rows) - ROWS} more")
    return "\n".join(
        [
            *lines,
            "",
            f"  missing   {safe(place.file)}",
            f"  now       {now}",
            f"  accept    {safe(place.accept)}",
        ]
    )


def rows_of(one: HeadChange) -> list[Row]:
    """Choose what to show of a head: its label, and the worst measure of each kind."""
    rows: list[Row] = []
    if one.relabelled:
        before, after = (word.replace("_", " ") for word in (one.label_before, one.label_after))
        rows.append(Row(one.name, "pattern", before, after))
    beyond = [move for move in one.moves if move.ratio > 1]
    shown = _worst_of_each_kind(beyond, (one.label_before, one.label_after))
    for move in shown:
        rows.append(_row("" if rows else one.name, move))
    return rows


def _worst_of_each_kind(moves: Sequence[MeasureMove], labels: Sequence[str]) -> list[MeasureMove]:
    """Keep one measure of place, one of evenness and one of what was stored; patterns first."""
    found: dict[str, MeasureMove] = {}
    # The pattern that gave the head its name says more than a larger change elsewhere.
    for move in sorted(moves, key=lambda move: move.measure not in labels):
        kind = "place"
        if move.measure in EVENNESS:
            kind = "evenness"
        elif move.measure in (VARIATION, DIVERGENCE):
            kind = "weights"
        elif move.measure in ("row_sum_error", "future_mass"):
            kind = move.measure
        held = found.get(kind)
        better = kind == "evenness" and move.measure == "entropy"
        if held is None or better or (held.measure in SHARES and move.measure not in SHARES):
            found[kind] = move
    return list(found.values())


def _row(head: str, move: MeasureMove) -> Row:
    name = WORDS.get(move.measure, move.measure.replace("_", " "))
    unit = unit_of(move.measure)
    before, after = (
        ("", "") if move.distance is not None else (_value(move.before), _value(move.after))
    )
    change = "" if math.isnan(move.change) else f"{move.change:+{_form(move.change)}}"
    return Row(
        head,
        name,
        before,
        after,
        change,
        _value(move.limit.allowed),
        "" if unit == "share" else unit,
    )


def _value(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:{_form(value)}}"


def _form(value: float) -> str:
    """Three decimals, fewer before larger numbers, an exponent for what would read as 0."""
    size = abs(value)
    if size and size < 5e-4:
        return ".0e"
    return ".3f" if size < 1e3 else ".4g"


def _permuted(cycle: Sequence[tuple[str, str]]) -> str:
    names = [old for old, _ in cycle]
    if len(names) == 2:
        return f"{names[0]} and {names[1]} swapped"
    return "permuted: " + ", ".join(f"{old} is now {new}" for old, new in cycle[:3])


def _table(rows: Sequence[Row]) -> list[str]:
    shown = [
        (row.head, row.measure, row.before, row.after, row.change, row.allowed, row.unit)
        for row in rows[:ROWS]
    ]
    widths = [
        max(
            least,
            columns_of(title),
            # A label may run on: the columns to its right are empty.
            *(columns_of(cells[place]) for cells in shown if place != 3 or cells[4]),
        )
        for place, (title, least) in enumerate(zip(COLUMNS, WIDTHS, strict=True))
    ]
    lines = []
    for cells in ((*COLUMNS, ""), *shown):
        parts = [
            _pad(safe(cell), width, left=place < 2)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=False))
        ]
        lines.append("  " + "  ".join([*parts, cells[-1]]).rstrip())
    return lines


def _recorded(head: HeadRecord) -> tuple[str, ...]:
    values = [head.values.get(name, math.nan) for name in ("entropy", "max_weight")]
    return (head.name, head.label.replace("_", " "), *map(_value, values))


def _columns(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    table = [titles, *rows]
    widths = [max(columns_of(row[place]) for row in table) for place in range(len(titles))]
    return [
        "  "
        + "  ".join(
            _pad(cell, width, left=place < 2)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def _pad(text: str, width: int, *, left: bool) -> str:
    space = " " * (width - columns_of(text))
    return text + space if left else space + text
