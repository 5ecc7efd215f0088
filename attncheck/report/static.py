"""The parts of a page that need no script: failures, head maps, tables, a few pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final
from urllib.parse import quote

from attncheck.checks.text import safe
from attncheck.metrics import METRICS
from attncheck.plot.palette import style_of
from attncheck.report.entries import FailureEntry, HeadEntry, ModelEntry, Report, Timeline
from attncheck.report.heatmaps import Heatmap
from attncheck.report.images import heatmap_uri

__all__ = [
    "anchor",
    "escaped",
    "facts_list",
    "failures_section",
    "model_section",
    "notes_section",
    "timeline_section",
]

MOST_PICTURES: Final = 12
"""Heatmaps of a model that stand in the page as pictures, for readers without scripts."""

MOST_FAILURE_PICTURES: Final = 40

COLUMNS: Final = ("normalized_entropy", "effective_keys", "sink_mass", "mean_distance")
"""Measures of the plain table."""


def escaped(text: str) -> str:
    """Escape for HTML, in text and in attributes; what cannot be printed is spelled out.

    Example:
        >>> escaped('<a href="x">&\\u2028')
        '&lt;a href=&quot;x&quot;&gt;&amp;\\\\u2028'
    """
    lines = str(text).split("\n")
    return "\n".join(escape(safe(line), quote=True) for line in lines)


def anchor(head: str, number: int) -> str:
    """Where a head stands in the page: ``L5H1``, or ``2.L5H1`` in a second model."""
    return head if number == 1 else f"{number}.{head}"


def facts_list(facts: Sequence[tuple[str, str]] | Sequence[list[str]]) -> str:
    """Lay out labels and texts."""
    pairs = "".join(
        f"<div><dt>{escaped(key)}</dt><dd>{escaped(text)}</dd></div>" for key, text in facts
    )
    return f'<dl class="facts">{pairs}</dl>' if pairs else ""


def notes_section(notes: Sequence[str]) -> str:
    """Lay out what a reader should know."""
    items = "".join(f"<li>{escaped(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def failures_section(report: Report) -> str:
    """Lay out what is wrong, with links to the heads that the page holds."""
    if not report.failures:
        return ""
    items, places = [], set[str]()
    for number, failure in enumerate(report.failures):
        place = "_".join(f"test:{failure['where']}".split())
        place = f"{place}:{number}" if place in places else place
        places.add(place)
        pictures = number < MOST_FAILURE_PICTURES
        items.append(_failure(failure, place, report.models, with_pictures=pictures))
    return f'<section id="failures"><h2>Failures</h2>{"".join(items)}</section>'


def _failure(
    failure: FailureEntry, place: str, models: Sequence[ModelEntry], *, with_pictures: bool
) -> str:
    verdict = failure["text"].split("\n")[0]
    pictures = "".join(
        f'<figure><img class="cells" src="{escape(source, quote=True)}" '
        f'alt="{escaped(f"{caption}: {verdict}")}"><figcaption>{escaped(caption)}</figcaption>'
        "</figure>"
        for caption, source in (failure["images"] if with_pictures else ())
    )
    links = "".join(
        f'<a href="#{escaped(anchor(name, number))}">{escaped(name)}</a>'
        for name in failure["heads"]
        for number in [_holder(failure["where"], name, models)]
        if number
    )
    heads = f'<p class="links">heads {links}</p>' if links else ""
    # A message of one line stands in the title already.
    text = f"<pre>{escaped(failure['text'])}</pre>" if "\n" in failure["text"].strip() else ""
    evidence = f'<div class="evidence">{pictures}{text}</div>' if pictures or text else ""
    return (
        f'<article class="failure" id="{escaped(place)}"><h3>'
        f'<a href="#{quote(safe(place))}">{escaped(verdict)}</a></h3>'
        f'<p class="where"><code>{escaped(failure["where"])}</code></p>'
        f"{evidence}{heads}</article>"
    )


def _holder(where: str, head: str, models: Sequence[ModelEntry]) -> int:
    """Number of the model that the failed test captured and that has such a head; 0: none."""
    for number, model in enumerate(models, start=1):
        mine = not model["tests"] or where in model["tests"]
        if mine and any(entry["name"] == head for entry in model["heads"]):
            return number
    return 0


def timeline_section(timeline: Timeline | None, classes: Mapping[str, str]) -> str:
    """Lay out the label of every head at every checkpoint."""
    if timeline is None:
        return ""
    header = "".join(f'<th scope="col">{escaped(head)}</th>' for head in timeline["heads"])
    rows = []
    for step, labels in zip(timeline["steps"], timeline["labels"], strict=True):
        cells = "".join(
            f'<td class="{classes[label]}" title="{escaped(f"{head} {label}")}">'
            f"{escaped(style_of(label)[1])}</td>"
            for head, label in zip(timeline["heads"], labels, strict=True)
        )
        rows.append(f'<tr><th scope="row">{escaped(step)}</th>{cells}</tr>')
    return (
        '<section id="timeline"><h2>Over the checkpoints</h2><div class="scroll" tabindex="0" '
        'role="region" aria-label="pattern of each head at each checkpoint">'
        f'<table class="map"><thead><tr><td></td>{header}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def model_section(
    model: ModelEntry, number: int, classes: Mapping[str, str], *, several: bool
) -> str:
    """Lay out one model: facts, head map, the plain table, pictures of a few heads."""
    title = f"{number}. {model['name']}" if several else model["name"]
    tests = [["captured in", _listed(model["tests"])]] if model["tests"] else []
    return (
        f'<section class="model" id="model-{number}"><h2>{escaped(title)}</h2>'
        f"{facts_list([*model['facts'], *tests])}{_prompt(model)}"
        f"{_head_map(model, number, classes)}{_legend(model, classes)}"
        f'<div class="cards" aria-label="heads"></div>'
        f"{_pictures(model)}{_table(model, number)}</section>"
    )


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _prompt(model: ModelEntry) -> str:
    if model["tokens"] is None:
        return ""
    tokens = "".join(f"<span>{escaped(token)}</span>" for token in model["tokens"])
    count = len(model["tokens"])
    return (
        f'<details class="prompt"><summary>prompt, {count} token{"s" * (count != 1)}</summary>'
        f'<p class="tokens">{tokens}</p></details>'
    )


def _head_map(model: ModelEntry, number: int, classes: Mapping[str, str]) -> str:
    """Layers down, heads across, a link in each cell."""
    columns = sorted({head["head"] for head in model["heads"]})
    rows: dict[int, dict[int, HeadEntry]] = {}
    for head in model["heads"]:
        rows.setdefault(head["layer"], {})[head["head"]] = head
    header = "".join(f'<th scope="col">{column}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row" title="{escaped(model["layers"][str(layer)])}">L{layer}</th>'
        + "".join(_cell(held.get(column), number, classes) for column in columns)
        + "</tr>"
        for layer, held in sorted(rows.items())
    )
    return (
        '<p class="mapnote">Layers down, heads across: the pattern of each head.</p>'
        '<div class="scroll"><table class="map heads" aria-label="pattern of each head">'
        "<thead><tr><td></td>"
        f"{header}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(head: HeadEntry | None, number: int, classes: Mapping[str, str]) -> str:
    if head is None:
        return "<td></td>"
    label, failed = head["label"], head["failed"]
    says = f"{head['name']} {label.replace('_', ' ')}"
    if failed:
        says += ", changed" if "change" in head else ", fails"
    before = head["change"]["label"] if "change" in head else label
    if before != label:
        says += f", was {before.replace('_', ' ')}"
    look = classes[label] + " bad" * failed
    place, says = escaped(anchor(head["name"], number)), escaped(says)
    return (
        f'<td><a class="{look}" href="#{place}" title="{says}" aria-label="{says}">'
        f"{escaped(style_of(label)[1])}</a></td>"
    )


def _legend(model: ModelEntry, classes: Mapping[str, str]) -> str:
    """Patterns and how many heads have them; the script makes filters of them."""
    counts: dict[str, int] = {}
    for head in model["heads"]:
        counts[head["label"]] = counts.get(head["label"], 0) + 1
    items = "".join(
        f'<li data-label="{escaped(label)}"><i class="{classes[label]}"></i>'
        f"{escaped(label.replace('_', ' '))} <b>{counts[label]}</b></li>"
        for label in classes
        if label in counts
    )
    return f'<ul class="legend">{items}</ul>'


def _pictures(model: ModelEntry) -> str:
    """Heatmaps of the heads that matter most, inside ``noscript``: the script draws them all."""
    shown = [head for head in _by_interest(model["heads"]) if head["maps"]][:MOST_PICTURES]
    if not shown:
        return ""
    figures = "".join(
        f"<figure>{_images(head, model['captions'])}<figcaption>{escaped(_line(head))}"
        "</figcaption></figure>"
        for head in shown
    )
    return (
        f"<noscript><h3>Heatmaps of {len(shown)} of {len(model['heads'])} heads</h3>"
        "<p>Those that fail first, then those that changed most, then the clearest of each "
        "pattern. Queries go down, keys go right; with scripts on, every head is drawn.</p>"
        f'<div class="gallery">{figures}</div></noscript>'
    )


def _images(head: HeadEntry, captions: Sequence[str]) -> str:
    names = list(captions) or [""] * len(head["maps"])
    return "".join(
        f'<img class="cells" src="{heatmap_uri(Heatmap.from_dict(held))}" '
        f'alt="{escaped(f"{name} {_line(head)}".strip())}">'
        for name, held in zip(names, head["maps"], strict=True)
    )


def _by_interest(heads: Sequence[HeadEntry]) -> list[HeadEntry]:
    """Failed heads, then by size of change, then the clearest head of each pattern in turn."""
    turn: dict[str, int] = {}
    rank: dict[str, int] = {}
    for head in sorted(heads, key=lambda head: -(head["margin"] or 0)):
        rank[head["name"]] = turn.setdefault(head["label"], 0)
        turn[head["label"]] += 1

    def key(head: HeadEntry) -> tuple[bool, float, int]:
        change = head["change"]["size"] if "change" in head else 0.0
        return not head["failed"], -change, rank[head["name"]]

    return sorted(heads, key=key)


def _line(head: HeadEntry) -> str:
    score = next((one for one in head["scores"] if one[0] == head["label"]), None)
    label = head["label"].replace("_", " ")
    text = f"{head['name']}: {label}"
    if score is not None:
        text += f", {_number(score[2])} of its mass, chance {_number(score[3])}"
    return text + (" (fails)" if head["failed"] else "")


def _table(model: ModelEntry, number: int) -> str:
    """Every head in a plain table, which needs no script."""
    compared = any("change" in head for head in model["heads"])
    names = ["head", "pattern", *(["was", "total variation"] if compared else [])]
    names += ["mass", "chance", "lift", "margin", *(name.replace("_", " ") for name in COLUMNS)]
    header = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = "".join(_row(head, number, compared) for head in model["heads"])
    return (
        '<details class="plain"><summary>All heads as a table</summary><div class="scroll" '
        'tabindex="0" role="region" aria-label="all heads">'
        f'<table class="numbers"><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>'
        "</div></details>"
    )


def _row(head: HeadEntry, number: int, compared: bool) -> str:
    score = next((one for one in head["scores"] if one[0] == head["label"]), None)
    at = list(METRICS)
    cells = [head["label"].replace("_", " ")]
    if compared:
        change = head["change"]
        cells += [change["label"].replace("_", " "), _number(change["mean"])]
    cells += [_number(value) for value in (score[2:5] if score else (None,) * 3)]
    cells += [_number(head["margin"])]
    cells += [_number(head["measures"][at.index(name)]) for name in COLUMNS]
    mark = ' class="bad"' if head["failed"] else ""
    place = escaped(anchor(head["name"], number))
    body = "".join(f"<td>{escaped(cell)}</td>" for cell in cells)
    return f'<tr id="{place}"{mark}><th scope="row">{escaped(head["name"])}</th>{body}</tr>'


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
