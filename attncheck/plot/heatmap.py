"""`plot_attention_heatmap`: one head, its tokens on both axes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from attncheck.attention import AttentionLike, LayerAttention, as_attention, head_name
from attncheck.attention.arguments import number_within
from attncheck.plot.canvas import checked_axes, folded, new_figure, root_figure, save_figure
from attncheck.plot.cells import Cells, cells_of, select_batch, select_head, starts_of
from attncheck.plot.labels import LITERAL, label_axis
from attncheck.plot.palette import ink_on

__all__ = ["HIDDEN_COLOUR", "draw_cells", "plot_attention_heatmap"]

MOST_CELLS: Final = 128
"""Longer sequences are drawn in blocks of tokens."""

MOST_LABELS: Final = 64
MOST_VALUES: Final = 40
HIDDEN_COLOUR: Final = "0.93"
"""Light grey: the query may not see this key. No colour of the common maps comes near it."""

Tokens = Sequence[str | int]


def plot_attention_heatmap(  # noqa: PLR0913 - the classic's seven, others by keyword
    attention: AttentionLike,
    x_tokens: Tokens | None = None,
    y_tokens: Tokens | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    cmap: str = "viridis",
    show_values: bool = False,
    save_path: str | os.PathLike[str] | None = None,
    *,
    ax: Axes | None = None,
    layer: int | str | None = None,
    head: int | str | None = None,
    batch: int | None = None,
    mask: Any = None,
    causal: bool | None = None,
    vmin: float | None = 0.0,
    vmax: float | None = 1.0,
) -> Axes:
    """Draw the attention of one head: queries down, keys across.

    More than 128 queries or keys are added up in blocks of tokens: a cell is then the share of
    attention on its block of keys, averaged over its block of queries, and the picture says so.
    Light grey cells are keys that the query may not see.

    Args:
        attention: Whatever `as_attention` takes; if it holds several heads, choose one with
            ``layer``, ``head`` and ``batch``.
        x_tokens: One per key. Default: the tokens that the maps carry, else positions.
        y_tokens: One per query. Default: in self-attention those of the keys, else positions.
        title: Default: the head, its module, and the numbers of queries and keys.
        figsize: In inches. Default: by the number of cells.
        cmap: Any matplotlib colormap; the default is perceptually uniform and readable without
            colour vision.
        show_values: Write the number into each cell (up to 40 x 40 cells).
        save_path: Write the figure there (png, svg, pdf); the same picture gives the same bytes.
        ax: Draw into these axes instead of a new figure.
        layer: Position or module name of the layer.
        head: The model's number of the head, or its name such as ``"L1H0"``.
        batch: Which sequence of a batch.
        mask: Which keys are visible, see `attncheck.as_attention`.
        causal: Whether queries see no later key; default as in `attncheck.as_attention`.
        vmin: Weight at the lowest colour; None: the smallest one drawn.
        vmax: Weight at the highest colour; None: the largest one drawn. The default range, 0 to 1,
            makes pictures comparable.

    Returns:
        The axes; their figure is ``ax.figure``. Nothing is shown, no global state is touched.

    Raises:
        TypeError: ``attention`` is nothing that holds attention, or another argument is of
            another kind.
        ValueError: Not attention weights, several heads and none chosen, tokens of another
            length, or too many cells to write values into.

    Example:
        >>> import torch
        >>> axes = plot_attention_heatmap(torch.eye(3), ["the", "cat", "sat"])
        >>> [label.get_text() for label in axes.get_xticklabels()]
        ['the', 'cat', 'sat']
    """
    maps = as_attention(attention, mask=mask, causal=causal)
    chosen, position = select_head(maps, layer, head)
    element = select_batch([chosen], batch)[0]
    cells = cells_of(chosen, position, element, MOST_CELLS)
    carried = None if maps.tokens is None or chosen.kind == "cross" else maps.tokens[element]
    x_tokens, y_tokens = _tokens(chosen, x_tokens, y_tokens, carried)
    if show_values and max(cells.values.shape) > MOST_VALUES:
        raise ValueError(
            f"show_values: numbers in {' x '.join(map(str, cells.values.shape))} cells would not "
            f"be readable; pass show_values=False, or at most {MOST_VALUES} queries and keys"
        )
    if ax is None:
        ax = new_figure(_figsize(cells, show_values), figsize).add_subplot()
    ax = checked_axes(ax)
    image = draw_cells(ax, cells, cmap=cmap, vmin=vmin, vmax=vmax)
    _name_axes(ax, cells, x_tokens, y_tokens, chosen.weights.shape[2:])
    if show_values:
        _write_values(ax, image, cells)
    head_line = _title(chosen, position) if title is None else title
    ax.set_title(folded(head_line, root_figure(ax)), fontsize=11, **LITERAL)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.8, pad=0.02, aspect=30)
    bar.set_label(_unit(cells))
    if save_path is not None:
        save_figure(root_figure(ax), save_path)
    return ax


def draw_cells(
    ax: Axes, cells: Cells, *, cmap: str, vmin: float | None, vmax: float | None
) -> AxesImage:
    """Paint the cells, without ticks or labels, as squares where that leaves them visible."""
    for name, bound in (("vmin", vmin), ("vmax", vmax)):
        if bound is not None:
            number_within(bound, name, -math.inf, math.inf, "a weight")
    colours = matplotlib.colormaps.get_cmap(cmap).with_extremes(bad=HIDDEN_COLOUR)
    rows, columns = cells.values.shape
    aspect: Literal["equal", "auto"] = (
        "equal" if max(rows, columns) <= 8 * min(rows, columns) else "auto"
    )
    if cells.hidden.all():
        centred: dict[str, Any] = {"ha": "center", "va": "center", "transform": ax.transAxes}
        ax.text(0.5, 0.5, "no query sees a key", fontsize=8, color="0.3", **centred)
    return ax.imshow(
        cells.shown, cmap=colours, vmin=vmin, vmax=vmax, aspect=aspect, interpolation="nearest"
    )


def _tokens(
    layer: LayerAttention, x: Tokens | None, y: Tokens | None, carried: Tokens | None
) -> tuple[Tokens | None, Tokens | None]:
    """Settle what stands on both axes, and check that it fits."""
    x = carried if x is None else _listed(x, "x_tokens")
    if y is not None:
        y = _listed(y, "y_tokens")
    elif x is not None and layer.positional and len(x) == layer.n_key:
        y = [x[place] for place in layer.query_positions().tolist()]
    for name, tokens, expected, what in (
        ("x_tokens", x, layer.n_key, "keys"),
        ("y_tokens", y, layer.n_query, "queries"),
    ):
        if tokens is not None and len(tokens) != expected:
            raise ValueError(f"{name}: {len(tokens)} tokens for {expected} {what}")
    return x, y


def _listed(tokens: Any, name: str) -> Tokens:
    if isinstance(tokens, str):
        raise ValueError(f"{name}: got one string {tokens[:20]!r}; expected a list of tokens")
    held = tokens.tolist() if hasattr(tokens, "tolist") else tokens
    if not isinstance(held, Iterable):
        raise TypeError(f"{name}: got {type(tokens).__name__}; expected a list of tokens")
    return list(held)


def _figsize(cells: Cells, show_values: bool) -> tuple[float, float]:
    """Inches such that a label fits beside each cell, within the limits of a page."""
    rows, columns = cells.values.shape
    longest = max(rows, columns)
    cell = 0.42 if show_values else 0.26 if longest <= 32 else 0.17
    cell = max(min(cell, 11.0 / longest), 2.6 / longest)
    return max(columns * cell, 1.2) + 2.4, max(rows * cell, 1.2) + 1.6


def _name_axes(
    ax: Axes, cells: Cells, x: Tokens | None, y: Tokens | None, shape: Sequence[int]
) -> None:
    rows, columns = cells.values.shape
    fontsize = 9.0 if max(rows, columns) <= 24 else 8.0 if max(rows, columns) <= 40 else 7.0
    keys, queries = starts_of(shape[1], cells.key_block), starts_of(shape[0], cells.query_block)
    label_axis(ax, "x", x, keys, most=MOST_LABELS, fontsize=fontsize)
    label_axis(ax, "y", y, queries, most=MOST_LABELS, fontsize=fontsize)
    ax.set_xlabel("Key (attended to)" + _blocks(cells.key_block))
    ax.set_ylabel("Query (attending from)" + _blocks(cells.query_block))


def _blocks(block: int) -> str:
    return f", blocks of {block} tokens" if block > 1 else ""


def _unit(cells: Cells) -> str:
    if not cells.blocked:
        return "Attention weight"
    mean = f", mean of {cells.query_block} queries" if cells.query_block > 1 else ""
    keys = f"block of {cells.key_block} keys" if cells.key_block > 1 else "key"
    return f"Attention mass per {keys}{mean}"


def _title(layer: LayerAttention, position: int) -> str:
    queries = "1 query" if layer.n_query == 1 else f"{layer.n_query} queries"
    size = f"{queries} x {layer.n_key} key{'s' * (layer.n_key != 1)}"
    if layer.backend == "given":
        return f"Attention weights, {size}"
    return f"{head_name(layer.index, layer.heads[position])} of {layer.name}\n{size}"


def _write_values(ax: Axes, image: AxesImage, cells: Cells) -> None:
    """Write each visible weight in black or white, whichever stands out."""
    size = 9.0 if max(cells.values.shape) <= 12 else 7.0
    for row, column in np.argwhere(~cells.hidden):
        value = cells.values[row, column]
        ax.text(
            column,
            row,
            f"{value:.2f}",
            ha="center",
            va="center",
            fontsize=size,
            color=ink_on(image.to_rgba(value)),
        )
