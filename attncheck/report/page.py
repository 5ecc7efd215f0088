"""`render_page`: a report becomes one HTML file that loads nothing else.

Whatever comes from a model, a prompt or a test is text here: escaped where it stands in HTML, and
in the data block written so that no character can end the block. The page's own policy lets no
script run but its own, which is named by hash, and no address be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from functools import cache
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from attncheck.metrics import METRICS
from attncheck.patterns import PATTERNS, VERDICTS
from attncheck.plot.palette import PATTERN_STYLES, ink_on, style_of
from attncheck.report.entries import SCHEMA, Report
from attncheck.report.images import DIVERGING, SEQUENTIAL
from attncheck.report.static import (
    escaped,
    facts_list,
    failures_section,
    model_section,
    notes_section,
    timeline_section,
)

__all__ = ["render_page", "write_page"]


def render_page(report: Report) -> str:
    """Return the page; the same report always gives the same text.

    Example:
        >>> import torch
        >>> from attncheck import profile_attention
        >>> from attncheck.report import describe_model
        >>> entry = describe_model("<script>", profile_attention(torch.eye(12)))
        >>> page = render_page(Report("A report", models=[entry]))
        >>> page.count("<script>"), "&lt;script&gt;" in page, "://" in page
        (1, True, False)
    """
    looks = _looks(report)
    classes = {name: f"p{number}" for number, name in enumerate(looks)}
    several = len(report.models) > 1
    sections = [
        notes_section(report.notes),
        failures_section(report),
        timeline_section(report.timeline, classes),
        *(
            model_section(model, number, classes, several=several)
            for number, model in enumerate(report.models, start=1)
        ),
    ]
    script = _file("script.js")
    return Template(_file("template.html")).substitute(
        title=escaped(report.title),
        status=_status(report),
        facts=facts_list(report.facts),
        style=_file("style.css") + _colours(looks, classes),
        hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        sections="\n".join(section for section in sections if section),
        data=_json(_document(report, looks, classes)),
        script=script,
    )


def write_page(report: Report, path: str | os.PathLike[str]) -> Path:
    """Write the page, whole or not at all; missing folders are made.

    Raises:
        OSError: It cannot be written; what was there before is still there.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:40]}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(render_page(report))
        os.chmod(part, 0o644)
        Path(part).replace(target)
    finally:
        Path(part).unlink(missing_ok=True)
    return target


def _status(report: Report) -> str:
    """One line: how many things are wrong, and what was looked at."""
    heads = sum(len(model["heads"]) for model in report.models)
    wrong = len(report.failures)
    word = f"{wrong} failure{'s' * (wrong != 1)}" if wrong else "no failures"
    kind = "bad" if wrong else "good"
    return f'<strong class="{kind}">{word}</strong>, {heads} head{"s" * (heads != 1)}'


def _looks(report: Report) -> dict[str, dict[str, str]]:
    """Colour, ink, short name and meaning of every label in the report."""
    meaning = {name: pattern.summary for name, pattern in PATTERNS.items()}
    meaning |= {name: verdict.summary for name, verdict in VERDICTS.items()}
    heads = [head for model in report.models for head in model["heads"]]
    found = {head["label"] for head in heads}
    found |= {head["change"]["label"] for head in heads if "change" in head}
    found |= {label for row in (report.timeline or {"labels": []})["labels"] for label in row}
    order = [name for name in PATTERN_STYLES if name in found]
    return {
        name: {
            "colour": style_of(name)[0],
            "ink": ink_on([int(style_of(name)[0][i : i + 2], 16) / 255 for i in (1, 3, 5)]),
            "short": style_of(name)[1],
            "text": meaning.get(name, ""),
        }
        for name in [*order, *sorted(found - set(order))]
    }


def _colours(looks: dict[str, dict[str, str]], classes: dict[str, str]) -> str:
    return "\n".join(
        f".{classes[name]}{{background:{look['colour']};color:{look['ink']}}}"
        for name, look in looks.items()
    )


def _document(report: Report, looks: Any, classes: dict[str, str]) -> dict[str, Any]:
    """What the script reads; failures stand in the page already."""
    return {
        "schema": SCHEMA,
        "labels": {name: {**look, "class": classes[name]} for name, look in looks.items()},
        "measures": [
            {"name": metric.name, "unit": metric.unit, "text": metric.summary}
            for metric in METRICS.values()
        ],
        "sequential": SEQUENTIAL,
        "diverging": DIVERGING,
        "models": list(report.models),
    }


def _json(document: dict[str, Any]) -> str:
    """Write JSON that can stand in a script block: ASCII, and none of ``< > &``."""
    text = json.dumps(document, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&"})


@cache
def _file(name: str) -> str:
    return files("attncheck.report").joinpath(name).read_text(encoding="utf-8")
