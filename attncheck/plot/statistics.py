"""`plot_statistics`: measures of all heads, layers down and heads across."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from attncheck.attention import AttentionLike
from attncheck.evaluate import profile_attention
from attncheck.metrics import METRICS
from attncheck.plot.canvas import folded, new_figure, save_figure
from attncheck.plot.labels import LITERAL, tick_step
from attncheck.plot.palette import ink_on

if TYPE_CHECKING:
    from attncheck.profile import HeadProfile

__all__ = ["plot_statistics"]

MOST_NUMBERED: Final = 16


def plot_statistics(
    attention: HeadProfile | AttentionLike,
    measures: Sequence[str] = ("normalized_entropy", "effective_keys", "sink_mass"),
    *,
    tokens: Any = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    cmap: str = "viridis",
    save_path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draw measures of every head, one panel a measure, layers down and heads across.

    Shares are coloured from 0 to 1, so that pictures compare; other units from 0 to the largest
    value. Up to 16 layers and heads have their numbers written in.

    Args:
        attention: A `HeadProfile`, or attention of any form that `as_attention` takes.
        measures: Names that `HeadProfile` knows: those of `METRICS`, or of patterns (their mass).
        tokens: Tokens, where ``attention`` is no profile yet; token patterns need them.
        title: Over all panels. Default: none.
        figsize: In inches. Default: by the numbers of measures, heads and layers.
        cmap: Any matplotlib colormap.
        save_path: Write the figure there (png, svg, pdf).

    Returns:
        The figure, one axes per measure first, then their colour bars.

    Raises:
        TypeError: ``attention`` is nothing that holds attention.
        ValueError: No measure, one that the profile has not, or not attention weights.

    Example:
        >>> import torch
        >>> figure = plot_statistics(torch.eye(8).expand(2, 8, 8), ["max_weight"])
        >>> figure.axes[0].get_title()
        'max weight'
    """
    if isinstance(measures, str):
        measures = [measures]
    if not measures:
        raise ValueError("measures: empty; pass names such as 'entropy' or 'sink_mass'")
    profile = (
        attention if hasattr(attention, "classify") else profile_attention(attention, tokens=tokens)
    )
    tables = {name: _table(profile, name) for name in measures}
    rows, columns = next(iter(tables.values())).shape
    panel = max(0.38 * columns, 1.8) if columns <= MOST_NUMBERED else 0.2 * columns
    height = max(0.32 * rows, 1.6) if rows <= MOST_NUMBERED else max(0.15 * rows, 1.6)
    figure = new_figure(figsize or (len(measures) * (panel + 1.2) + 0.3, height + 1.2))
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    layers = [str(layer.index) for layer in profile.layers]
    for ax, (name, table) in zip(panels, tables.items(), strict=True):
        _draw(ax, name, table, layers, cmap)
    if title is not None:
        figure.suptitle(folded(title, figure), fontsize=11, **LITERAL)
    if save_path is not None:
        save_figure(figure, save_path)
    return figure


def _table(profile: Any, name: str) -> NDArray[np.float64]:
    try:
        return np.asarray(profile[name], dtype=np.float64)
    except KeyError as error:
        raise ValueError(f"measures: {error.args[0]}") from None


def _draw(
    ax: Axes, name: str, table: NDArray[np.float64], layers: Sequence[str], cmap: str
) -> None:
    unit = METRICS[name].unit if name in METRICS else "share"
    finite = table[np.isfinite(table)]
    highest = 1.0 if unit == "share" or not finite.size else float(finite.max())
    image = ax.imshow(
        np.ma.masked_invalid(table),
        cmap=matplotlib.colormaps[cmap],
        vmin=0.0,
        vmax=highest,
        aspect="auto",
        interpolation="nearest",
    )
    rows, columns = table.shape
    down, across = tick_step(rows, 24), tick_step(columns, 24)
    ax.set_yticks(range(0, rows, down), layers[::down], fontsize=8)
    ax.set_xticks(
        range(0, columns, across), [str(head) for head in range(0, columns, across)], fontsize=8
    )
    ax.set_title(name.replace("_", " "), fontsize=10)
    ax.set_xlabel("Head")
    ax.set_ylabel("Layer")
    ax.figure.colorbar(image, ax=ax, pad=0.02, aspect=30).set_label(unit)
    if max(rows, columns) <= MOST_NUMBERED:
        for row, column in np.argwhere(np.isfinite(table)):
            value = table[row, column]
            ink = ink_on(image.to_rgba(value))
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
