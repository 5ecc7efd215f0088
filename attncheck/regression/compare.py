"""From a baseline and a capture to a verdict: judgement, finding, and a copy of the worst head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from attncheck.attention import AttentionMaps, LayerAttention
from attncheck.checks import Evidence, Finding, Offender
from attncheck.checks.subject import Subject, head_label
from attncheck.metrics import paired_distance
from attncheck.regression.baseline import Baseline
from attncheck.regression.capture import Capture
from attncheck.regression.changes import Judgement
from attncheck.regression.judge import judge
from attncheck.regression.message import COLUMNS, headline, rows_of
from attncheck.regression.tolerance import ALLOWED, Atol

__all__ = ["Verdict", "compare_captures", "judge_capture"]


@dataclass(frozen=True)
class Verdict:
    """What judging a capture gave.

    Attributes:
        judgement: What became of every head.
        finding: The same in the form of every check, with a copy of the worst head.
    """

    judgement: Judgement
    finding: Finding


def judge_capture(
    capture: Capture, baseline: Baseline, held: AttentionMaps | None = None, *, atol: Atol = None
) -> Verdict:
    """Judge a capture by a baseline.

    Args:
        capture: What is now.
        baseline: What was recorded.
        held: The weights that were recorded with it.
        atol: What a measure may move, see `judge`.
    """
    judgement = judge(
        baseline.heads,
        capture.records,
        dtypes=(baseline.environment.dtype, capture.environment.dtype),
        atol=atol,
        runs=(baseline.runs, capture.runs),
        distances=_distances(held, capture.maps),
    )
    return Verdict(judgement, _finding(judgement, capture, held))


def compare_captures(before: Capture, after: Capture, *, atol: Atol = None) -> Verdict:
    """Judge one capture by another, without a file between them.

    Example:
        >>> from attncheck.regression import open_capture
        >>> before = open_capture(torch.eye(16))
        >>> verdict = compare_captures(before, open_capture(torch.full((16, 16), 1 / 16)))
        >>> verdict.judgement.verdict, verdict.judgement.changed[0].label_after
        ('changed', 'uniform')
    """
    baseline = Baseline("", before.environment, before.records, before.runs, before.input)
    return judge_capture(after, baseline, before.maps, atol=atol)


def _distances(
    held: AttentionMaps | None, maps: AttentionMaps | None
) -> dict[str, tuple[float, float]]:
    """Distance of every head from itself, where both weights are there and of one shape."""
    found = {}
    for before, after in _paired(held, maps):
        if before.weights.shape == after.weights.shape and before.heads == after.heads:
            distance = paired_distance(before, after)
            for head in range(after.n_heads):
                pair = float(distance.variation[head]), float(distance.divergence[head])
                if not np.isnan(pair).any():
                    found[head_label(after, head)] = pair
    return found


def _paired(
    held: AttentionMaps | None, maps: AttentionMaps | None
) -> list[tuple[LayerAttention, LayerAttention]]:
    if held is None or maps is None:
        return []
    before = {(layer.index, layer.call): layer for layer in held.layers}
    return [
        (before[layer.index, layer.call], layer)
        for layer in maps.layers
        if (layer.index, layer.call) in before
    ]


def _finding(judgement: Judgement, capture: Capture, held: AttentionMaps | None) -> Finding:
    changed = judgement.verdict == "changed"
    gone = len(judgement.missing)
    return Finding(
        check="head_regression",
        passed=not changed,
        verdict=headline(judgement),
        name="heads",
        subject=f"{len(capture.records)} heads, {capture.environment}",
        rule=f"heads move by at most {ALLOWED:g} of their attention",
        columns=COLUMNS[1:],
        offenders=tuple(
            Offender(one.name, (row.measure, row.before, row.after, row.change), row.allowed)
            for one in judgement.changed
            for row in rows_of(one)
        ),
        n_passed=judgement.total - len(judgement.changed) - gone,
        n_total=judgement.total,
        evidence=_evidence(judgement, capture.maps, _paired(held, capture.maps)),
    )


def _evidence(
    judgement: Judgement,
    maps: AttentionMaps | None,
    pairs: list[tuple[LayerAttention, LayerAttention]],
) -> Evidence | None:
    """Copy the worst head, and what was recorded of it, around the row that moved most.

    Marked are the cells that moved at least half as far as the one that moved most.
    """
    if maps is None or not judgement.changed:
        return None
    name = judgement.changed[0].name
    subject = Subject(maps.layers, maps.tokens, "heads", "")
    for layer in maps.layers:
        for head in range(layer.n_heads):
            if head_label(layer, head) == name:
                old = next((one for one, other in pairs if other is layer), None)
                if old is None or old.weights.shape != layer.weights.shape:
                    return subject.evidence(layer, head, 0)
                return _compared(subject, old, layer, head)
    return None


def _compared(subject: Subject, old: LayerAttention, new: LayerAttention, head: int) -> Evidence:
    before = old.weights[:, head].double().cpu()
    gap = (new.weights[:, head].detach().double().cpu() - before).abs()
    batch, query = divmod(int(gap.sum(-1).argmax()), new.n_query)
    key = int(gap[batch, query].argmax())
    moved = torch.zeros(new.weights.shape[-2:], dtype=torch.bool)
    moved |= gap[batch] > max(ALLOWED, 0.5 * float(gap[batch].max()))
    found = subject.evidence(new, head, batch, moved, around=(query, key))
    rows = slice(found.query_start, found.query_start + found.weights.shape[0])
    columns = slice(found.key_start, found.key_start + found.weights.shape[1])
    window = before[batch, rows, columns].numpy().astype(found.weights.dtype)
    fields: Mapping[str, object] = {**vars(found), "expected": window}
    return Evidence(**fields)  # type: ignore[arg-type]
