"""`plot_head_map`: what each head of a model does, at one glance."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.patches import Patch

from attncheck.attention import AttentionLike
from attncheck.patterns import HeadLabel, HeadLabels, classify_heads
from attncheck.plot.canvas import checked_axes, folded, new_figure, root_figure, save_figure
from attncheck.plot.labels import LITERAL
from attncheck.plot.palette import PATTERN_STYLES, ink_on, style_of

__all__ = ["plot_head_map"]


def plot_head_map(
    heads: HeadLabels | Sequence[HeadLabel] | AttentionLike,
    *,
    tokens: Any = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    save_path: str | os.PathLike[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw layers x heads, each cell coloured and captioned by the pattern of its head.

    A caption is the pattern's short name over the mass on its keys. Blues are patterns by
    position, oranges by column, teals by token, greys are verdicts without a pattern.

    Args:
        heads: `HeadLabels` or a list of `HeadLabel`, a `HeadProfile`, or attention of any form
            that `as_attention` takes.
        tokens: Tokens, where ``heads`` is attention; without them no token pattern is found.
        title: Default: the number of heads and layers.
        figsize: In inches. Default: by the number of heads and layers.
        save_path: Write the figure there (png, svg, pdf).
        ax: Draw into these axes instead of a new figure.

    Returns:
        The axes; layer ``l``, head ``h`` is at ``(h, l)`` if numbers have no gaps.

    Raises:
        TypeError: ``heads`` is none of the above, or ``figsize`` no pair.
        ValueError: No heads, or not attention weights.

    Example:
        >>> from attncheck.patterns import HeadLabel
        >>> axes = plot_head_map([HeadLabel(0, 0, "uniform", 0.5), HeadLabel(0, 1, "local", 0.4)])
        >>> [text.get_text() for text in axes.texts]
        ['unif', 'local']
    """
    labels = _labels_of(heads, tokens)
    layers = sorted({label.layer for label in labels})
    numbers = sorted({label.head for label in labels})
    if ax is None:
        wide, high = 0.62 * len(numbers), 0.46 * len(layers)
        ax = new_figure((max(wide, 2.4) + 2.6, max(high, 2.0) + 1.1), figsize).add_subplot()
    present = [name for name in PATTERN_STYLES if any(label.label == name for label in labels)]
    present += sorted({label.label for label in labels} - set(present))
    colours = [style_of(name)[0] for name in present]
    ax = checked_axes(ax)
    codes = np.full((len(layers), len(numbers)), np.nan)
    for label in labels:
        row, column = layers.index(label.layer), numbers.index(label.head)
        codes[row, column] = present.index(label.label)
        ink = ink_on(to_rgb(style_of(label.label)[0]))
        ax.text(column, row, _caption(label), color=ink, fontsize=7, **_CENTRED, **LITERAL)
    ax.imshow(
        np.ma.masked_invalid(codes),
        cmap=ListedColormap(colours),
        vmin=-0.5,
        vmax=len(colours) - 0.5,
        aspect="auto",
        interpolation="nearest",
    )
    _frame(ax, layers, numbers)
    handles = [
        Patch(facecolor=colour, edgecolor="0.4", label=name.replace("_", " "))
        for name, colour in zip(present, colours, strict=True)
    ]
    ax.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8, frameon=False
    )
    head_line = _title(labels, layers) if title is None else title
    ax.set_title(folded(head_line, root_figure(ax)), fontsize=11, loc="left", **LITERAL)
    if save_path is not None:
        save_figure(root_figure(ax), save_path)
    return ax


_CENTRED: dict[str, Any] = {"ha": "center", "va": "center", "linespacing": 1.0}


def _labels_of(heads: Any, tokens: Any) -> list[HeadLabel]:
    """Labels as given, from a profile, or from attention."""
    if isinstance(heads, HeadLabels) or (
        isinstance(heads, list | tuple) and heads and isinstance(heads[0], HeadLabel)
    ):
        labels = heads
    elif hasattr(heads, "classify"):
        labels = heads.classify()
    else:
        labels = classify_heads(heads, tokens=tokens)
    if not len(labels):
        raise ValueError("heads: empty, holds no head")
    return list(labels)


def _caption(label: HeadLabel) -> str:
    """Short name, and under it the mass where the label is a pattern that was scored."""
    short = style_of(label.label)[1]
    for score in label.ranked:
        if score.pattern == label.label:
            return f"{short}\n{score.mass:.2f}"
    return short


def _frame(ax: Axes, layers: Sequence[int], numbers: Sequence[int]) -> None:
    """Number heads and layers, with white lines between the cells."""
    ax.set_xticks(range(len(numbers)), [str(number) for number in numbers], fontsize=8)
    ax.set_yticks(range(len(layers)), [str(layer) for layer in layers], fontsize=8)
    ax.set_xticks(np.arange(len(numbers) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(layers) + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=1.5)
    ax.tick_params(which="minor", length=0)
    ax.set_xlabel("Head")
    ax.set_ylabel("Layer")


def _title(labels: Sequence[HeadLabel], layers: Sequence[int]) -> str:
    heads = f"{len(labels)} head{'s' * (len(labels) != 1)}"
    return f"Pattern of {heads} in {len(layers)} layer{'s' * (len(layers) != 1)}"
