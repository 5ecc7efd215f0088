"""A head as text: blocks for weights, marks for the cells that break the rule."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from attncheck.checks.finding import Evidence

__all__ = ["draw"]

MOST_ROWS: Final = 24
MOST_COLUMNS: Final = 32
SHADES: Final = ("··", "░░", "▒▒", "▓▓", "██")
"""From the smallest visible weight to the largest, in quarters of the largest."""

GAP: Final = 4
"""Columns between two pictures."""

MARK: Final = "!!"
HIDDEN: Final = "  "


def draw(evidence: Evidence) -> str:
    """Draw one head, queries down and keys across; a block of cells shows its largest weight.

    Args:
        evidence: The head.

    Returns:
        At most 24 lines of 64 columns, and one that explains them. Where it is known what the
        weights were before, both side by side, and the cells that moved are marked.

    Example:
        >>> import torch
        >>> from attncheck.checks import check_causal
        >>> finding = check_causal(torch.tensor([[0.75, 0.25], [0.5, 0.5]]))
        >>> print(draw(finding.evidence))
        ██!!
        ▓▓▓▓
        ██ 0.75  !! breaks the rule
    """
    weights = _sizes(evidence.weights)
    rows, columns = weights.shape
    most = MOST_COLUMNS if evidence.expected is None else MOST_COLUMNS // 2
    block = max(1, -(-rows // MOST_ROWS), -(-columns // most))
    largest = float(weights.max(initial=0))
    visible, bad = _pool(evidence.visible, block), _pool(evidence.offending, block)
    if evidence.expected is None:
        lines = _lines(weights, block, largest, visible, bad)
    else:
        before = _sizes(evidence.expected)
        largest = max(largest, float(before.max(initial=0)))
        left = ["baseline", *_lines(before, block, largest, visible, np.zeros_like(bad))]
        right = ["now", *_lines(weights, block, largest, visible, bad)]
        width = max(len("baseline"), 2 * bad.shape[1]) + GAP
        lines = [one.ljust(width) + other for one, other in zip(left, right, strict=True)]
    legend = [f"{SHADES[-1]} {largest:.2g}"]
    said = "breaks the rule" if evidence.expected is None else "moved most"
    legend += [f"{MARK} {said}"] if bad.any() else []
    legend += [f"one mark is {block} x {block} cells"] if block > 1 else []
    if evidence.query_start or evidence.key_start:
        legend.append(f"from query {evidence.query_start}, key {evidence.key_start}")
    return "\n".join([*lines, "  ".join(legend)])


def _sizes(weights: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.nan_to_num(np.abs(weights), nan=0, posinf=0, neginf=0))


def _lines(
    weights: NDArray[Any], block: int, largest: float, visible: NDArray[Any], bad: NDArray[Any]
) -> list[str]:
    shares = _pool(weights, block) / (largest or 1)
    return [
        "".join(_cell(*cell) for cell in zip(*line, strict=True)).rstrip()
        for line in zip(shares, visible, bad, strict=True)
    ]


def _cell(share: float, visible: bool, bad: bool) -> str:
    if bad:
        return MARK
    if share > 0 or visible:
        return SHADES[min(4, int(share * 4 + 0.5))]
    return HIDDEN


def _pool(cells: NDArray[Any], block: int) -> NDArray[Any]:
    """Take the largest value of each block."""
    rows, columns = cells.shape
    starts = np.arange(0, rows, block), np.arange(0, columns, block)
    pooled = np.maximum.reduceat(np.maximum.reduceat(cells, starts[0], axis=0), starts[1], axis=1)
    return np.asarray(pooled)
