"""The result of a comparison, as text for 80 columns, as JSON, and as a page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from attncheck import __version__
from attncheck.attention import head_name
from attncheck.checks.text import clip, number, safe
from attncheck.cli.sides import Side
from attncheck.metrics import paired_distance
from attncheck.regression import Judgement, judge, records_of
from attncheck.regression.changes import HeadChange
from attncheck.regression.tolerance import ALLOWED
from attncheck.report import FailureEntry, Heatmap, ModelEntry, Report, describe_model, heatmaps_of
from attncheck.report.heads import measures_of, plain
from attncheck.tolerances import tolerance_for

__all__ = ["Comparison", "compare_sides", "page_of", "render", "to_json"]

SCHEMA: Final = "attncheck.compare.1"
MOST_ROWS: Final = 24


@dataclass
class Comparison:
    """All that a comparison found.

    Attributes:
        a: The first side.
        b: The second side.
        judgement: What became of every head.
        distances: Total variation and Jensen-Shannon divergence (nats) by head, where both sides
            hold weights of one shape.
        floor: Share of attention that rounding alone may move, from the table of dtypes.
        allowed: Share of attention that a head may move without having changed.
        notes: What a reader should know.
        files: What was written.
    """

    a: Side
    b: Side
    judgement: Judgement
    distances: Mapping[str, tuple[float, float]]
    floor: float
    allowed: float
    notes: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


def compare_sides(a: Side, b: Side, atol: float | None = None) -> Comparison:
    """Judge every head of the second side by the first, as ``head_regression`` does.

    Raises:
        ValueError: The two hold different heads.
    """
    a.profile.compare(b.profile, measures=[])  # refuses other layers or heads
    dtypes = (*a.dtypes, *b.dtypes)
    distances = _distances(a, b)
    judgement = judge(
        records_of([a.profile]),
        records_of([b.profile]),
        dtypes=dtypes,
        atol=atol,
        distances=distances,
    )
    floor = tolerance_for(*dtypes).total_variation
    found = Comparison(a, b, judgement, distances, floor, ALLOWED if atol is None else atol)
    if None not in (a.tokens, b.tokens) and a.tokens != b.tokens:
        found.notes.append("the two sides saw different tokens")
    if not distances:
        found.notes.append("no weights on both sides: judged by measures alone")
    return found


def _distances(a: Side, b: Side) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    if a.maps is None or b.maps is None:
        return found
    for one, other in zip(a.maps.layers, b.maps.layers, strict=True):
        if one.weights.shape == other.weights.shape:
            distance = paired_distance(one, other)
            for at, head in enumerate(other.heads):
                pair = float(distance.variation[at]), float(distance.divergence[at])
                if not any(map(math.isnan, pair)):
                    found[head_name(other.index, head)] = pair
    return found


def moved(found: Comparison) -> list[HeadChange]:
    """Heads beyond rounding, changed ones first, each kind worst first."""
    return [*found.judgement.changed, *found.judgement.drifted]


def render(found: Comparison, *, every: bool = False) -> str:
    """Write the result as text, at most 80 columns wide."""
    lines = [f"A  {clip(safe(found.a.name), 76)}", f"B  {clip(safe(found.b.name), 76)}"]
    lines += [f"   {clip(safe(note), 76)}" for note in found.notes]
    lines += ["", *_table(found, every=every), *_summary(found)]
    if found.files:
        lines += ["", "written", *(f"  {name}" for name in found.files)]
    return "\n".join(lines)


def _table(found: Comparison, *, every: bool) -> list[str]:
    rows = moved(found)
    shown = rows if every else rows[:MOST_ROWS]
    lines = []
    if shown:
        lines.append(_COLUMNS)
        lines += [_line(one, found) for one in shown]
        if len(rows) > len(shown):
            lines.append(f"({len(rows) - len(shown)} more moved; --all shows every one)")
        lines.append("")
    return lines


_COLUMNS: Final = f"{'head':<9}{'moved':>9}  {'pattern':<34}largest change"


def _line(one: HeadChange, found: Comparison) -> str:
    distance = found.distances.get(one.name)
    share = distance[0] if distance else one.size
    before, after = (label.replace("_", " ") for label in (one.label_before, one.label_after))
    pattern = f"{before} -> {after}" if one.relabelled else after
    mark = "*" if one.changed else " "
    return f"{one.name:<8}{mark}{number(share):>9}  {clip(pattern, 33):<34}{_largest(one)}".rstrip()


def _largest(one: HeadChange) -> str:
    """The measure that moved most, of those with a value of their own."""
    move = next((m for m in one.moves if not math.isnan(m.before)), None)
    if move is None:
        return ""
    name = clip(move.measure.replace("_", " "), 14)
    sign = "+" if move.change > 0 else ""
    return f"{name} {sign}{number(move.change)}"


def _summary(found: Comparison) -> list[str]:
    judgement = found.judgement
    total, changed, drifted = judgement.total, len(judgement.changed), len(judgement.drifted)
    lines = [
        f"{changed} of {total} heads changed (*), {drifted} drifted, "
        f"{total - changed - drifted} within rounding",
        f"rounding moves up to {found.floor:g} of the attention, {found.allowed:g} is allowed",
    ]
    for cycle in judgement.permuted:
        lines.append(
            clip("exchanged: " + ", ".join(f"{old} is now {new}" for old, new in cycle), 80)
        )
    return lines


def to_json(found: Comparison) -> dict[str, Any]:
    """Describe the result as data."""
    changed = {one.name for one in found.judgement.changed}
    drifted = {one.name for one in found.judgement.drifted}
    change_of = {one.name: one for one in moved(found)}
    labels = zip(found.a.profile.classify(), found.b.profile.classify(), strict=True)
    return {
        "schema": SCHEMA,
        "a": found.a.name,
        "b": found.b.name,
        "dtypes": [list(dict.fromkeys(side.dtypes)) for side in (found.a, found.b)],
        "notes": found.notes,
        "verdict": found.judgement.verdict,
        "floor": found.floor,
        "allowed": found.allowed,
        "heads": [
            {
                "head": now.name,
                "verdict": "changed"
                if now.name in changed
                else ("drifted" if now.name in drifted else "same"),
                "label": [was.label, now.label],
                "total_variation": _pair(found, now.name)[0],
                "divergence": _pair(found, now.name)[1],
                "moves": [
                    {
                        "measure": move.measure,
                        "before": plain(move.before),
                        "after": plain(move.after),
                        "change": plain(move.change),
                        "allowed": plain(move.limit.allowed),
                    }
                    for move in (change_of[now.name].moves if now.name in change_of else ())
                ],
            }
            for was, now in labels
        ],
        "permuted": [[list(pair) for pair in cycle] for cycle in found.judgement.permuted],
        "files": found.files,
    }


def _pair(found: Comparison, name: str) -> tuple[float | None, float | None]:
    distance = found.distances.get(name)
    return (None, None) if distance is None else (plain(distance[0]), plain(distance[1]))


def page_of(found: Comparison) -> Report:
    """Make the page: both heatmaps of every head side by side, changed heads first."""
    changed = {one.name for one in found.judgement.changed}
    entry = describe_model(
        "A and B",
        found.b.profile,
        _heatmaps(found),
        tokens=found.b.tokens[0] if found.b.tokens else None,
        facts=[("A", found.a.name), ("B", found.b.name), ("allowed", f"{found.allowed:g}")],
        captions=["A", "B"],
        failed=changed,
    )
    _add_changes(entry, found)
    failures: list[FailureEntry] = []
    if changed:
        names = [one.name for one in found.judgement.changed]
        headline, *rest = _summary(found)
        text = "\n".join([headline, "", *_table(found, every=False), *rest])
        failures.append({"where": "B by A", "text": text, "heads": names, "images": []})
    facts = [("attncheck", __version__), ("torch", torch.__version__)]
    return Report("attncheck compare", facts, [entry], failures, found.notes)


def _add_changes(entry: ModelEntry, found: Comparison) -> None:
    before = [row for layer in found.a.profile.layers for row in measures_of(layer)]
    sizes = {one.name: one.size for one in moved(found)}
    for head, measures, label in zip(
        entry["heads"], before, found.a.profile.classify(), strict=True
    ):
        mean, divergence = _pair(found, head["name"])
        size = mean if mean is not None else min(sizes.get(head["name"], 0.0), 1e9)
        head["change"] = {
            "label": label.label,
            "measures": measures,
            "mean": mean,
            "divergence": divergence,
            "size": float(f"{size:.5g}"),
        }


def _heatmaps(found: Comparison) -> dict[str, list[Heatmap]]:
    heatmaps: dict[str, list[Heatmap]] = {}
    if found.a.maps is None or found.b.maps is None:
        return heatmaps
    for maps in (found.a.maps, found.b.maps):
        for layer in maps.layers:
            for name, heatmap in heatmaps_of(layer):
                heatmaps.setdefault(name, []).append(heatmap)
    return heatmaps
