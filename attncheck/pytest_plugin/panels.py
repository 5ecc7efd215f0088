"""The picture of a failure: one head, offending cells in red squares, beside what it was before."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from attncheck.checks.finding import Evidence
from attncheck.plot.canvas import new_figure, save_figure
from attncheck.plot.cells import Cells
from attncheck.plot.heatmap import draw_cells

__all__ = ["draw_evidence"]

DIFFERENCE: Final = "RdBu_r"
"""Colours of a difference: red is more than before, blue is less, white is none."""


def draw_evidence(evidence: Evidence, verdict: str, path: Path) -> Path:
    """Draw a head, or, where it is known what it was, baseline, now and the difference.

    Args:
        evidence: The head.
        verdict: For the title.
        path: Of the PNG.
    """
    weights = np.nan_to_num(evidence.weights.astype(np.float64), nan=0, posinf=1, neginf=0)
    panels: list[tuple[str, NDArray[Any], str, float]] = [("", weights, "viridis", 0.0)]
    if evidence.expected is not None:
        before = evidence.expected.astype(np.float64)
        panels = [
            ("baseline", before, "viridis", 0.0),
            ("now", weights, "viridis", 0.0),
            ("now - baseline", weights - before, DIFFERENCE, -1.0),
        ]
    figure = new_figure((6 if len(panels) == 1 else 14, 5))
    for number, (name, values, colours, lowest) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        hidden = ~evidence.visible & ~evidence.offending & (values == 0)
        cells = Cells(values, hidden, query_block=1, key_block=1)
        image = draw_cells(axes, cells, cmap=colours, vmin=lowest, vmax=1)
        if name != "baseline":
            _mark(axes, evidence)
        axes.set_title(name or f"{evidence.head}: {verdict}", fontsize=10, parse_math=False)
        axes.set_xlabel("key" + (f" - {evidence.key_start}" if evidence.key_start else ""))
        axes.set_ylabel("query" + (f" - {evidence.query_start}" if evidence.query_start else ""))
        said = "attention weight" if lowest == 0 else "change of weight"
        figure.colorbar(image, ax=axes, label=said)
    if len(panels) > 1:
        figure.suptitle(f"{evidence.head}: {verdict}", fontsize=10, parse_math=False)
    return save_figure(figure, path)


def _mark(axes: Any, evidence: Evidence) -> None:
    queries, keys = np.nonzero(evidence.offending)
    size = (250 / max(evidence.weights.shape)) ** 2
    axes.scatter(keys, queries, s=size, marker="s", facecolors="none", edgecolors="red")
