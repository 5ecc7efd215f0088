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

MARK: Final = "!!"
HIDDEN: Final = "  "


def draw(evidence: Evidence) -> str:
    """Draw one head, queries down and keys across; a block of cells shows its largest weight.

    Args:
        evidence: The head.

    Returns:
        At most 24 lines of 64 columns, and one that explains them.

    Example:
        >>> import torch
        >>> from attncheck.checks import check_causal
        >>> finding = check_causal(torch.tensor([[0.75, 0.25], [0.5, 0.5]]))
        >>> print(draw(finding.evidence))
        ██!!
        ▓▓▓▓
        ██ 0.75  !! breaks the rule
    """
    weights = np.nan_to_num(np.abs(evidence.weights), nan=0, posinf=0, neginf=0)
    rows, columns = weights.shape
    block = max(1, -(-rows // MOST_ROWS), -(-columns // MOST_COLUMNS))
    largest = float(weights.max(initial=0))
    shares = _pool(weights, block) / (largest or 1)
    visible, bad = _pool(evidence.visible, block), _pool(evidence.offending, block)
    lines = [
        "".join(_cell(*cell) for cell in zip(*line, strict=True)).rstrip()
        for line in zip(shares, visible, bad, strict=True)
    ]
    legend = [f"{SHADES[-1]} {largest:.2g}"]
    legend += [f"{MARK} breaks the rule"] if bad.any() else []
    legend += [f"one mark is {block} x {block} cells"] if block > 1 else []
    if evidence.query_start or evidence.key_start:
        legend.append(f"from query {evidence.query_start}, key {evidence.key_start}")
    return "\n".join([*lines, "  ".join(legend)])


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
