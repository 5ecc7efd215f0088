"""What every head does at each checkpoint of a folder, and when that changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from attncheck import __version__
from attncheck.checks.text import clip, safe
from attncheck.cli.problem import CommandError
from attncheck.cli.sides import Side, is_profile, is_state
from attncheck.metrics import METRICS
from attncheck.patterns import HeadLabels
from attncheck.profile import HeadProfile
from attncheck.progress import Progress
from attncheck.report import Heatmap, Report, describe_model, heatmaps_of
from attncheck.report.heads import measures_of, plain

__all__ = ["Trajectory", "checkpoints_in", "follow", "page_of", "render", "to_json"]

SCHEMA: Final = "attncheck.trajectory.1"


@dataclass
class Trajectory:
    """Every head at every checkpoint.

    Attributes:
        steps: Names of the checkpoints, in order.
        profiles: One per checkpoint.
        labels: One per checkpoint.
        last: The last checkpoint, with its weights.
        files: What was written.
    """

    steps: list[str]
    profiles: list[HeadProfile]
    labels: list[HeadLabels]
    last: Side
    files: list[str] = field(default_factory=list)


def checkpoints_in(folder: Path, *, states: bool) -> list[tuple[str, Path]]:
    """Find checkpoints: models in sub-folders, saved profiles, or state dicts if asked for.

    They are in the order of the numbers in their names. A folder that is a model itself has none.
    """
    if (folder / "config.json").exists() and not states:
        return []
    inside = sorted(folder.iterdir(), key=_natural)
    if states:
        found = [path for path in inside if is_state(path)]
    else:
        found = [path for path in inside if (path / "config.json").is_file()]
        found = found or [path for path in inside if path.suffix == ".json" and is_profile(path)]
    if not found:
        wanted = "state dicts" if states else "models (config.json) or saved profiles (.json)"
        raise CommandError(f"{folder}: holds no {wanted}")
    return [(path.stem if path.is_file() else path.name, path) for path in found]


def follow(steps: Sequence[tuple[str, Callable[[], Side]]], progress: Progress) -> Trajectory:
    """Measure the checkpoints one after the other; only the last one's weights are kept."""
    names: list[str] = []
    profiles: list[HeadProfile] = []
    for name, measure in steps:
        side = measure()
        if profiles and side.profile.heads() != profiles[0].heads():
            raise CommandError(f"{name}: has other heads than {names[0]}")
        names.append(safe(name))
        profiles.append(side.profile)
    progress.say("naming heads")
    return Trajectory(names, profiles, [profile.classify() for profile in profiles], side)


def events(found: Trajectory) -> list[tuple[str, list[tuple[str, str]]]]:
    """For each head, the checkpoints at which it is called something new: (checkpoint, label)."""
    listed = []
    for at, first in enumerate(found.labels[0]):
        changes = [(found.steps[0], first.label)]
        for step, labels in zip(found.steps[1:], found.labels[1:], strict=True):
            if labels[at].label != changes[-1][1]:
                changes.append((step, labels[at].label))
        listed.append((first.name, changes))
    return listed


def render(found: Trajectory, *, every: bool = False) -> str:
    """Write the result as text, at most 80 columns wide; heads that never changed only if asked."""
    first, last = found.steps[0], found.steps[-1]
    lines = [clip(f"{len(found.steps)} checkpoints, {first} to {last}", 80), ""]
    still = 0
    for head, changes in events(found):
        if len(changes) == 1 and not every:
            still += 1
            continue
        lines += _line(head, changes)
    if still:
        lines.append(f"{still} heads never change their pattern; --all shows them")
    if found.files:
        lines += ["", "written", *(f"  {name}" for name in found.files)]
    return "\n".join(lines)


def _line(head: str, changes: Sequence[tuple[str, str]]) -> list[str]:
    """Lay out one head, folded at 80 columns."""
    lines = [f"{head:<8}{changes[0][1].replace('_', ' ')}"]
    for step, label in changes[1:]:
        part = f" -> {label.replace('_', ' ')} at {clip(step, 30)}"
        if len(lines[-1]) + len(part) > 80:
            lines.append(" " * 8)
        lines[-1] += part
    return lines


def to_json(found: Trajectory) -> dict[str, Any]:
    """Describe the result as data: per head and checkpoint the label and every measure."""
    columns = [
        [row for layer in profile.layers for row in measures_of(layer)]
        for profile in found.profiles
    ]
    return {
        "schema": SCHEMA,
        "steps": found.steps,
        "heads": [
            {
                "head": label.name,
                "labels": [labels[at].label for labels in found.labels],
                "mass": [_mass(labels, at, found.labels[-1][at].label) for labels in found.labels],
                "measures": {
                    name: [column[at][place] for column in columns]
                    for place, name in enumerate(METRICS)
                },
            }
            for at, label in enumerate(found.labels[0])
        ],
        "files": found.files,
    }


def _mass(labels: HeadLabels, at: int, pattern: str) -> float | None:
    """Mass of one pattern in one head, where it was scored."""
    score = next((one for one in labels[at].ranked if one.pattern == pattern), None)
    return None if score is None else plain(score.mass)


def page_of(found: Trajectory) -> Report:
    """Make the page: labels over the checkpoints, then the heads of the last one."""
    heatmaps: dict[str, list[Heatmap]] = {}
    if found.last.maps is not None:
        for layer in found.last.maps.layers:
            heatmaps |= {name: [heatmap] for name, heatmap in heatmaps_of(layer)}
    entry = describe_model(
        found.steps[-1],
        found.profiles[-1],
        heatmaps,
        tokens=found.last.tokens[0] if found.last.tokens else None,
        labels=found.labels[-1],
    )
    return Report(
        "attncheck compare: trajectory",
        [("attncheck", __version__), ("torch", torch.__version__)],
        [entry],
        timeline={
            "steps": found.steps,
            "heads": [label.name for label in found.labels[0]],
            "labels": [[label.label for label in labels] for labels in found.labels],
        },
    )


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort by the numbers in a name: step-9 before step-10."""
    return [
        (int(part), "") if part.isdigit() else (-1, part)
        for part in re.split(r"(\d+)", path.name)
        if part
    ]
