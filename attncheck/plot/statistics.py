"""`plot_statistics`: measures of all heads, layers down and heads across."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attncheck.attention import AttentionLike
from attncheck.attention.arguments import words
from attncheck.evaluate import profile_attention
from attncheck.metrics import METRICS
from attncheck.plot.canvas import folded, new_figure, save_figure
from attncheck.plot.labels import LITERAL, tick_step
from attncheck.plot.palette import ink_on

if TYPE_CHECKING:
    from attncheck.profile import HeadProfile

__all__ = ["plot_statistics"]

MOST_NUMBERED: Final = 16

Table: TypeAlias = np.ma.MaskedArray[Any, np.dtype[np.float64]]


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
    value. Up to 16 layers and heads have their numbers written in, ``-`` where a head has none.

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
        TypeError: ``attention`` is nothing that holds attention, ``measures`` no names, or
            ``figsize`` no pair.
        ValueError: No measure, one that the profile has not, or not attention weights.

    Example:
        >>> import torch
        >>> figure = plot_statistics(torch.eye(8).expand(2, 8, 8), ["max_weight"])
        >>> figure.axes[0].get_title()
        'max weight'
    """
    measures = words(measures, "measures", "names")
    if not measures:
        raise ValueError("measures: empty; pass names such as 'entropy' or 'sink_mass'")
    profile = (
        attention if hasattr(attention, "classify") else profile_attention(attention, tokens=tokens)
    )
    heads = sorted({head for layer in profile.layers for head in layer.heads})
    tables = {name: _table(profile, name, heads) for name in measures}
    rows, columns = len(profile.layers), len(heads)
    panel = max(0.38 * columns, 1.8) if columns <= MOST_NUMBERED else 0.2 * columns
    height = max(0.32 * rows, 1.6) if rows <= MOST_NUMBERED else max(0.15 * rows, 1.6)
    figure = new_figure((len(measures) * (panel + 1.2) + 0.3, height + 1.2), figsize)
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    names = [str(layer.index) for layer in profile.layers], [str(head) for head in heads]
    for ax, (name, table) in zip(panels, tables.items(), strict=True):
        _draw(ax, name, table, names, cmap)
    if title is not None:
        figure.suptitle(folded(title, figure), fontsize=11, **LITERAL)
    if save_path is not None:
        save_figure(figure, save_path)
    return figure


def _table(profile: HeadProfile, name: str, heads: Sequence[int]) -> Table:
    """One measure ``(layer, head number)``, NaN without a value, masked without such a head."""
    try:
        held = profile[name]
    except KeyError as error:
        raise ValueError(f"measures: {error.args[0]}") from None
    values = np.full((len(held), len(heads)), np.nan)
    missing = np.ones(values.shape, dtype=np.bool_)
    for row, layer in enumerate(profile.layers):
        columns = [heads.index(head) for head in layer.heads]
        values[row, columns] = held[row, : layer.n_heads]
        missing[row, columns] = False
    return np.ma.masked_array(values, missing)


def _draw(
    ax: Axes, name: str, table: Table, names: tuple[Sequence[str], Sequence[str]], cmap: str
) -> None:
    base = name.partition(".")[0]
    unit = METRICS[base].unit if base in METRICS else "share"
    finite = table.data[~table.mask & np.isfinite(table.data)]
    highest = 1.0 if unit == "share" or not finite.size else float(finite.max())
    image = ax.imshow(
        np.ma.masked_invalid(table),
        cmap=matplotlib.colormaps.get_cmap(cmap),
        vmin=0.0,
        vmax=highest,
        aspect="auto",
        interpolation="nearest",
    )
    rows, columns = table.shape
    down, across = tick_step(rows, 24), tick_step(columns, 24)
    ax.set_yticks(range(0, rows, down), names[0][::down], fontsize=8)
    ax.set_xticks(range(0, columns, across), names[1][::across], fontsize=8)
    ax.set_title(name.replace("_", " "), fontsize=10)
    ax.set_xlabel("Head")
    ax.set_ylabel("Layer")
    ax.figure.colorbar(image, ax=ax, pad=0.02, aspect=30).set_label(unit)
    if max(rows, columns) <= MOST_NUMBERED:
        for row, column in np.argwhere(~table.mask):
            value = table.data[row, column]
            known = np.isfinite(value)
            ink = ink_on(image.to_rgba(value)) if known else "black"
            number = _number(value) if known else "-"
            ax.text(column, row, number, ha="center", va="center", fontsize=7, color=ink)


def _number(value: float) -> str:
    """A number in the width of a cell: four signs, from 1,000 on as many as it has digits."""
    size = abs(value)
    return f"{value:.2f}" if size < 9.995 else f"{value:.1f}" if size < 99.95 else f"{value:.0f}"
