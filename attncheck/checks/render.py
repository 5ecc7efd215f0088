"""`render`: a finding becomes the text that a failing test shows."""

from __future__ import annotations

import textwrap
from typing import Final

from attncheck.checks.finding import Finding, Offender, Position
from attncheck.checks.text import clip, columns_of, number, safe, token

__all__ = ["ROWS", "WIDTH", "render"]

WIDTH: Final = 72
"""Columns of a message: pytest indents it by 8, and 80 is what a terminal has."""

ROWS: Final = 5
"""Rows of the table; the rest is counted."""

NAME_WIDTH: Final = 16

AXES: Final = ("batch", "query", "key")


def render(finding: Finding) -> str:
    """Turn a finding into text: verdict, subject, rule, table worst first, what passed, next step.

    Args:
        finding: What a check returned.

    Returns:
        Lines of at most 72 columns. The first is the verdict, so that a summary line shows it.

    Example:
        >>> import torch
        >>> from attncheck.checks import check_causal
        >>> weights = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
        >>> print(render(check_causal(weights)))
        not causal: 1 of 1 future weights > 1e-05
        <BLANKLINE>
          attn   f32[2,2] (query, key)
          rule   attn[..., query, key] <= 1e-05 where key > query
        <BLANKLINE>
          head  future mass  weights  worst
          L0H0       0.1250        1  0.2500 at query 0 -> key 1
          0 of 1 heads pass
          next   add -inf to the scores of later keys before softmax
    """
    labels = [(clip(safe(finding.name), NAME_WIDTH), finding.subject), ("rule", finding.rule)]
    labels += finding.facts
    lines = [finding.verdict, "", *_labelled(labels)]
    if finding.offenders:
        lines += ["", *_table(finding)]
    passed = f"  {finding.n_passed} of {finding.n_total} {finding.unit} pass"
    lines.append(passed)
    worst = _tokens(finding)
    if worst:
        lines += _labelled([("worst", worst)])
    lines += _labelled([("next", hint) for hint in finding.hints])
    return "\n".join(clip(safe(line), WIDTH) for line in lines)


def _labelled(pairs: list[tuple[str, str]]) -> list[str]:
    """Lay out label and text; long texts wrap under themselves."""
    width = max(5, *(columns_of(label) for label, _ in pairs)) + 2 if pairs else 0
    lines = []
    for label, text in pairs:
        start = "  " + label + " " * (width - columns_of(label))
        wrapped = textwrap.wrap(text, WIDTH - 2 - width, break_long_words=False) or [""]
        lines.append(start + wrapped[0])
        lines += [" " * (2 + width) + line for line in wrapped[1:]]
    return lines


def _table(finding: Finding) -> list[str]:
    """Lay out the table: the head to the left, numbers to the right, the worst with its place.

    Where that is too wide, places become short; where it still is, columns before the worst go.
    """
    shown = finding.offenders[:ROWS]
    last = len(finding.columns) - 1
    for short, kept in [(False, last), *((True, kept) for kept in range(last, -1, -1))]:
        *names, worst = finding.columns
        axes = _axes(shown) if short else ""
        rows = [("head", *names[:kept], worst + (f" at {axes}" if axes else ""))]
        rows += [_cells(offender, kept, short=short) for offender in shown]
        lines = _aligned(rows)
        if max(map(columns_of, lines)) <= WIDTH:
            break
    rest = len(finding.offenders) - len(shown)
    return [*lines, f"  +{rest} more"] if rest else lines


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(columns_of(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for cells in rows:
        head = cells[0] + " " * (widths[0] - columns_of(cells[0]))
        middle = [
            " " * (width - columns_of(cell)) + cell
            for cell, width in zip(cells[1:-1], widths[1:-1], strict=True)
        ]
        lines.append("  " + "  ".join([head, *middle, cells[-1]]).rstrip())
    return lines


def _cells(offender: Offender, kept: int, *, short: bool) -> tuple[str, ...]:
    where = _place(offender.at, short=short)
    worst = number(offender.worst) + (f" at {where}" if where else "")
    return (safe(offender.head), *map(number, offender.values[:kept]), worst)


def _axes(offenders: tuple[Offender, ...]) -> str:
    """Name the axes of short places, ``"[batch,query,key]"``."""
    found = [axis for axis in AXES if any(getattr(one.at, axis) is not None for one in offenders)]
    return f"[{','.join(found)}]" if found else ""


def _place(at: Position, *, short: bool) -> str:
    if short:
        numbers = [str(place) for axis in AXES if (place := getattr(at, axis)) is not None]
        return f"[{','.join(numbers)}]" if numbers else ""
    parts = [
        f"{axis} {index}"
        for axis, index in (("batch", at.batch), ("query", at.query))
        if index is not None
    ]
    return ", ".join(parts) + (f" -> key {at.key}" if at.key is not None else "")


def _tokens(finding: Finding) -> str:
    """Name the tokens at the worst position, where they are known."""
    at = finding.offenders[0].at if finding.offenders else Position()
    found = [
        f"{axis} {index} {token(text)}"
        for axis, index, text in (
            ("query", at.query, at.query_token),
            ("key", at.key, at.key_token),
        )
        if text is not None
    ]
    return " -> ".join(found)
