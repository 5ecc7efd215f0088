"""Figures without pyplot: made, filled and written to disk the same way by every plot."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from attncheck.attention.arguments import number_within
from attncheck.plot.labels import drawable

__all__ = ["DPI", "folded", "new_figure", "root_figure", "save_figure"]

MIN_INCHES: Final = 0.1
MAX_INCHES: Final = 400.0
"""Of a side; at `DPI` matplotlib draws no more than 65,536 pixels."""

DPI: Final = 150
"""Pixels per inch of files that `save_figure` writes."""

LETTERS_PER_INCH: Final = 10.5
"""Of a title in 11 points; leaves room for wide letters."""

STABLE_METADATA: Final[dict[str, dict[str, Any]]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
    "ps": {"CreationDate": None},
}
"""Per format, what to leave out so that one picture always gives the same bytes."""


def new_figure(usual: tuple[float, float], figsize: Any = None) -> Figure:
    """Return a figure that belongs to nobody's global state.

    Args:
        usual: Width and height in inches.
        figsize: What a caller wants instead; None: nothing.

    Raises:
        TypeError: ``figsize`` is no pair of numbers.
        ValueError: One of them is no size.
    """
    figure = Figure(
        figsize=usual if figsize is None else _inches(figsize),
        layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, compress=True),
    )
    FigureCanvasAgg(figure)
    return figure


def _inches(figsize: Any) -> tuple[float, float]:
    sides = list(figsize) if isinstance(figsize, Iterable) and not isinstance(figsize, str) else []
    if len(sides) != 2:
        raise TypeError(f"figsize: {figsize!r}; expected width and height in inches, as (6, 4)")
    width, height = (
        number_within(side, "figsize", MIN_INCHES, MAX_INCHES, "inches") for side in sides
    )
    return width, height


def folded(title: str, figure: Figure) -> str:
    """Break the lines of a title that are wider than the figure; escape what cannot be drawn."""
    width = max(20, int(figure.get_figwidth() * LETTERS_PER_INCH))
    return "\n".join(textwrap.fill(drawable(line), width) for line in str(title).splitlines())


def checked_axes(ax: Any) -> Axes:
    """Return the axes to draw into.

    Raises:
        TypeError: They are none, such as the array that ``plt.subplots(1, 2)`` gives.
    """
    if not isinstance(ax, Axes):
        raise TypeError(f"ax: is {type(ax).__name__}; expected one matplotlib Axes, or None")
    return ax


def root_figure(ax: Axes) -> Figure:
    """Return the figure that holds the axes, through any number of subfigures."""
    holder = ax.figure
    while not isinstance(holder, Figure):
        holder = holder.figure
    return holder


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write the figure, whole or not at all; the same picture gives the same bytes.

    Args:
        figure: What to write.
        path: Its suffix picks the format (png, svg, pdf, ...; none: png). Missing folders are
            made.

    Raises:
        ValueError: matplotlib knows no such format.
    """
    target = Path(path)
    kind = target.suffix.lstrip(".").lower() or "png"
    known = figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise ValueError(f"save_path: no format {kind!r}; known are {', '.join(sorted(known))}")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with matplotlib.rc_context({"svg.hashsalt": "attncheck"}):
            figure.savefig(part, format=kind, dpi=DPI, metadata=STABLE_METADATA.get(kind))
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target
