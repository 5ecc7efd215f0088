"""What a report holds, as plain data: it crosses processes as JSON and stands in the page once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NotRequired, TypedDict

__all__ = [
    "SCHEMA",
    "Change",
    "FailureEntry",
    "HeadEntry",
    "MapEntry",
    "ModelEntry",
    "Report",
    "Timeline",
]

SCHEMA: Final = "attncheck.report.1"


class MapEntry(TypedDict):
    """A heatmap: base64 of one byte per cell, row by row; see `attncheck.report.Heatmap`."""

    rows: int
    columns: int
    peak: float
    blocks: list[int]
    codes: str


class Change(TypedDict):
    """How far a head moved from the first of two models to the second."""

    label: str
    measures: list[float | None]
    mean: float | None
    divergence: float | None
    size: float


class HeadEntry(TypedDict):
    """One head. ``scores`` are (pattern, parameter, mass, chance, lift, strength), best first."""

    name: str
    layer: int
    head: int
    label: str
    margin: float | None
    note: str
    scores: list[list[Any]]
    measures: list[float | None]
    maps: list[MapEntry]
    failed: bool
    change: NotRequired[Change]


class ModelEntry(TypedDict):
    """One captured model (or two compared ones): facts, tokens of the prompt, layers, heads."""

    name: str
    facts: list[list[str]]
    captions: list[str]
    tokens: list[str] | None
    layers: dict[str, str]
    heads: list[HeadEntry]
    tests: list[str]


class FailureEntry(TypedDict):
    """One thing that is wrong: where, the message, the heads it names.

    ``images`` are (caption, data URI).
    """

    where: str
    text: str
    heads: list[str]
    images: list[list[str]]


class Timeline(TypedDict):
    """Labels of every head at each checkpoint: ``labels[checkpoint][head]``."""

    steps: list[str]
    heads: list[str]
    labels: list[list[str]]


@dataclass
class Report:
    """A whole page.

    Attributes:
        title: Heads the page.
        facts: Label and text, such as versions.
        models: What was captured.
        failures: What is wrong, worst first.
        notes: What a reader should know, such as what was left out.
        timeline: How labels moved over checkpoints, or None.
    """

    title: str
    facts: Sequence[tuple[str, str]] = ()
    models: Sequence[ModelEntry] = ()
    failures: Sequence[FailureEntry] = ()
    notes: Sequence[str] = ()
    timeline: Timeline | None = None
