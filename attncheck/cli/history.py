"""What a `HeadMonitor` wrote, as text, JSON and a page."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from attncheck import __version__
from attncheck.checks.text import clip, safe
from attncheck.cli.problem import CommandError
from attncheck.metrics import METRICS
from attncheck.monitor import HeadHistory, HeadSample
from attncheck.patterns import PATTERNS, VERDICTS
from attncheck.report import Report
from attncheck.report.heads import plain

__all__ = ["History", "is_history", "page_of", "read_history", "render", "to_json"]

SCHEMA: Final = "attncheck.trajectory.1"
MOST_ALERTS: Final = 20


@dataclass
class History:
    """A history and what was made of it.

    Attributes:
        name: The file.
        held: Its samples.
        files: What was written.
    """

    name: str
    held: HeadHistory
    files: list[str] = field(default_factory=list)


def is_history(name: str | None) -> bool:
    """Whether an argument is the file of a monitor, by its name."""
    return name is not None and Path(name).suffix == ".jsonl" and Path(name).is_file()


def read_history(name: str) -> History:
    """Read the file of a monitor.

    Raises:
        CommandError: It cannot be read, is no history, or holds no sample yet.
    """
    try:
        held = HeadHistory.load(name)
    except OSError as error:
        raise CommandError(f"{name}: {error.strerror}") from None
    except ValueError as error:
        raise CommandError(str(error).removeprefix("path: ")) from None
    if not len(held):
        raise CommandError(f"{name}: holds no sample yet")
    return History(name, held)


def events(held: HeadHistory) -> list[tuple[str, list[tuple[int, str]]]]:
    """For each head, the steps at which it is called something new: (step, label)."""
    found: list[tuple[str, list[tuple[int, str]]]] = []
    table = held.labels()
    for place, head in enumerate(held.heads):
        changes: list[tuple[int, str]] = []
        for step, labels in zip(held.steps, table, strict=True):
            label = labels[place]
            if label and (not changes or changes[-1][1] != label):
                changes.append((step, label))
        found.append((head, changes))
    return found


def render(found: History, *, every: bool = False) -> str:
    """Write the result as text, at most 80 columns wide; heads that never changed only if asked."""
    held = found.held
    alerts = held.alerts
    many = f"{len(alerts)} alert{'s' * (len(alerts) != 1)}" if alerts else "no alerts"
    steps = held.steps
    lines = [f"{len(steps)} samples, step {steps[0]} to {steps[-1]}, {many}", ""]
    shown = alerts if every else alerts[:MOST_ALERTS]
    lines += [clip(safe(str(alert)), 80) for alert in shown]
    if len(shown) < len(alerts):
        lines.append(f"+{len(alerts) - len(shown)} more; --all shows them")
    lines += [""] * bool(alerts)
    still = 0
    for head, changes in events(held):
        if len(changes) == 1 and not every:
            still += 1
            continue
        lines += _line(head, changes)
    if still:
        lines.append(f"{still} heads never change their pattern; --all shows them")
    if held.skipped:
        lines += ["", f"{held.skipped} damaged lines of the file were skipped"]
    if found.files:
        lines += ["", "written", *(f"  {name}" for name in found.files)]
    return "\n".join(lines)


def _line(head: str, changes: list[tuple[int, str]]) -> list[str]:
    """Lay out one head, folded at 80 columns."""
    lines = [f"{safe(head):<8}{safe(changes[0][1]).replace('_', ' ')}"]
    for step, label in changes[1:]:
        part = f" -> {safe(label).replace('_', ' ')} at {step}"
        if len(lines[-1]) + len(part) > 80:
            lines.append(" " * 8)
        lines[-1] += part
    return lines


def to_json(found: History) -> dict[str, Any]:
    """Describe the result as data: per head and step the label and every measure."""
    held = found.held
    labels = held.labels()
    tables = {name: held.values(name) for name in held.measures}
    return {
        "schema": SCHEMA,
        "steps": held.steps,
        "heads": [
            {
                "head": head,
                "labels": [row[place] for row in labels],
                "measures": {
                    name: [plain(float(value)) for value in table[:, place]]
                    for name, table in tables.items()
                },
            }
            for place, head in enumerate(held.heads)
        ],
        "alerts": [{**vars(one), "value": plain(one.value)} for one in held.alerts],
        "skipped": held.skipped,
        "files": found.files,
    }


def page_of(found: History) -> Report:
    """Make the page: alerts, labels over the steps, then the heads of the last sample."""
    held = found.held
    last = held[-1]
    ill = {alert.head for alert in held.alerts}
    facts = [("samples", f"{len(held)}, step {held.steps[0]} to {held.steps[-1]}")]
    if "every" in held.about:
        facts.append(("sampled every", f"{safe(str(held.about['every']))} steps"))
    return Report(
        "attncheck: heads in training",
        [
            ("attncheck", __version__),
            ("torch", safe(str(held.about.get("torch", torch.__version__)))),
        ],
        [
            {
                "name": f"{safe(str(held.about.get('model', found.name)))}, step {last.step}",
                "facts": [[key, text] for key, text in facts],
                "captions": [],
                "tokens": None,
                "layers": {str(number): "" for number in sorted(_layers(last))},
                "heads": [_head(last, place, ill) for place in range(len(last.heads))],
                "tests": [],
            }
        ],
        failures=[
            {
                "where": f"step {alert.step}",
                "text": str(alert).partition(", ")[2],
                "heads": [alert.head] if alert.head in last.heads else [],
                "images": [],
            }
            for alert in held.alerts
        ],
        notes=[f"{held.skipped} damaged lines were skipped"] if held.skipped else [],
        timeline={
            "steps": [f"step {step}" for step in held.steps],
            "heads": list(held.heads),
            "labels": [[_known(label) for label in row] for row in held.labels()],
        },
    )


def _layers(sample: HeadSample) -> set[int]:
    return {_numbers(name)[0] for name in sample.heads}


def _numbers(head: str) -> tuple[int, int]:
    layer, _, number = head.removeprefix("L").partition("H")
    return (int(layer), int(number)) if layer.isdigit() and number.isdigit() else (0, 0)


def _known(label: str) -> str:
    """A label that the page has a colour for."""
    return label if label in PATTERNS or label in VERDICTS else "undetermined"


def _head(sample: HeadSample, place: int, ill: set[str]) -> Any:
    layer, number = _numbers(sample.heads[place])
    scores: list[list[Any]] = [
        [name, None, plain(held[place]), None, None, None]
        for name, held in sample.measures.items()
        if name in PATTERNS and math.isfinite(held[place])
    ]
    scores.sort(key=lambda score: -score[2])
    logit = plain(sample.value("max_logit", place))
    return {
        "name": safe(sample.heads[place]),
        "layer": layer,
        "head": number,
        "label": _known(sample.labels[place]),
        "margin": None,
        "note": "" if logit is None else f"largest score before softmax: {logit:g}",
        "scores": scores,
        "measures": [plain(sample.value(name, place)) for name in METRICS],
        "maps": [],
        "failed": sample.heads[place] in ill,
    }
