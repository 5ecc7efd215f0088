"""`plot_heads`: the heads of a layer or of a whole model, side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attncheck.attention import (
    AttentionLike,
    AttentionMaps,
    LayerAttention,
    as_attention,
    head_name,
)
from attncheck.patterns import HeadLabel, classify_heads
from attncheck.plot.canvas import folded, new_figure, save_figure
from attncheck.plot.cells import cells_of, select_batch, select_layers, starts_of
from attncheck.plot.heatmap import draw_cells
from attncheck.plot.labels import LITERAL, label_axis
from attncheck.plot.palette import style_of

__all__ = ["plot_heads"]

MOST_HEADS: Final = 400
MOST_CELLS: Final = 64
LABEL_INCHES: Final = 0.085
"""Room that a token label takes along its axis."""


def plot_heads(  # noqa: PLR0913 - keyword-only, as users of matplotlib expect them
    attention: AttentionLike,
    *,
    tokens: Any = None,
    layer: int | str | None = None,
    batch: int | None = None,
    labels: Sequence[HeadLabel] | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    cmap: str = "viridis",
    mask: Any = None,
    causal: bool | None = None,
    vmin: float | None = 0.0,
    vmax: float | None = 1.0,
    save_path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draw every head in a panel of its own, titled with its name and its pattern.

    Several layers make one row each; the heads of one layer fill a near square. Panels share the
    colour range, and the outer ones carry the tokens. More than 64 queries or keys are added up
    in blocks, see `plot_attention_heatmap`.

    Args:
        attention: Whatever `as_attention` takes.
        tokens: One per key. Default: the tokens that the maps carry.
        layer: Position or module name of one layer; None: all.
        batch: Which sequence of a batch.
        labels: What to call the heads, in order. Default: `classify_heads` on what is drawn; an
            empty list leaves patterns out.
        title: Over all panels. Default: the numbers of heads, queries and keys.
        figsize: In inches. Default: by the number of heads.
        cmap: Any matplotlib colormap.
        mask: Which keys are visible, see `as_attention`.
        causal: Whether queries see no later key; default as in `as_attention`.
        vmin: Weight at the lowest colour; None: each panel's smallest.
        vmax: Weight at the highest colour; None: each panel's largest.
        save_path: Write the figure there (png, svg, pdf).

    Returns:
        The figure; its first axes are the heads in order.

    Raises:
        TypeError: ``attention`` is nothing that holds attention, or ``figsize`` no pair.
        ValueError: Not attention weights, a batch and no element chosen, more heads than one
            picture can show, or another number of labels than heads.

    Example:
        >>> import torch
        >>> figure = plot_heads(torch.eye(8).expand(2, 8, 8))
        >>> [axes.get_title() for axes in figure.axes[:2]]
        ['L0H0 diagonal', 'L0H1 diagonal']
    """
    maps = as_attention(attention, tokens=tokens, mask=mask, causal=causal)
    layers = select_layers(maps, layer)
    elements = select_batch(layers, batch)
    heads = [
        (held, position, element)
        for held, element in zip(layers, elements, strict=True)
        for position in range(held.n_heads)
    ]
    if len(heads) > MOST_HEADS:
        raise ValueError(
            f"attention: {len(heads)} heads, more than the {MOST_HEADS} that one picture can "
            "show; pass layer=, or use plot_head_map"
        )
    titles = _titles(maps, layers, elements, labels)
    columns = _columns(layers)
    rows = -(-len(heads) // columns) if len(layers) == 1 else len(layers)
    panel = _panel(layers[0], len(heads))
    figure = new_figure(_figsize(panel, rows, columns), figsize)
    grid = figure.add_gridspec(rows, columns)
    places = _places(layers, columns)
    for number, (held, position, element) in enumerate(heads):
        row, column = places[number]
        ax = figure.add_subplot(grid[row, column])
        cells = cells_of(held, position, element, MOST_CELLS)
        image = draw_cells(ax, cells, cmap=cmap, vmin=vmin, vmax=vmax)
        ax.set_title(titles[number], fontsize=8, pad=3, **LITERAL)
        carried = _tokens_of(maps, held, element)
        own = None
        if carried and held.positional:
            own = [carried[place] for place in held.query_positions().tolist()]
        keys = carried if (row + 1, column) not in places else ()
        _label_side(ax, "x", keys, starts_of(held.n_key, cells.key_block), panel[0])
        queries = own if column == 0 else ()
        _label_side(ax, "y", queries, starts_of(held.n_query, cells.query_block), panel[1])
    if vmin is not None and vmax is not None:
        bar = figure.colorbar(
            image, ax=figure.axes, shrink=0.8 if rows < 5 else 0.4, pad=0.02, aspect=30
        )
        bar.set_label("Attention mass per block" if cells.blocked else "Attention weight")
    head_line = _title(heads) if title is None else title
    figure.suptitle(folded(head_line, figure), fontsize=11, **LITERAL)
    figure.supxlabel("Key (attended to)", fontsize=10)
    figure.supylabel("Query (attending from)", fontsize=10)
    if save_path is not None:
        save_figure(figure, save_path)
    return figure


def _columns(layers: Sequence[LayerAttention]) -> int:
    if len(layers) > 1:
        return max(held.n_heads for held in layers)
    heads = layers[0].n_heads
    return next(width for width in range(1, heads + 1) if width * width >= heads)


def _titles(
    maps: AttentionMaps,
    layers: Sequence[LayerAttention],
    elements: Sequence[int],
    labels: Any,
) -> list[str]:
    """Name each head, with its pattern where there is one."""
    names = [head_name(held.index, number) for held in layers for number in held.heads]
    if labels is None:
        labels = classify_heads(_drawn(maps, layers, elements))
    if isinstance(labels, str) or not isinstance(labels, Sequence):
        raise TypeError(f"labels: is {type(labels).__name__}; expected a list of HeadLabel")
    if not labels:
        return names
    for label in labels:
        if not hasattr(label, "label"):
            raise TypeError(f"labels: {label!r} is {type(label).__name__}; expected HeadLabel")
    if len(labels) != len(names):
        raise ValueError(f"labels: {len(labels)} labels for {len(names)} heads")
    short = len(names) > 24
    return [
        f"{name} {style_of(label.label)[1] if short else label.label.replace('_', ' ')}"
        for name, label in zip(names, labels, strict=True)
    ]


def _drawn(
    maps: AttentionMaps, layers: Sequence[LayerAttention], elements: Sequence[int]
) -> AttentionMaps:
    """Only the batch elements that are drawn, so that labels speak of the picture."""
    kept = []
    for held, element in zip(layers, elements, strict=True):
        one = slice(element, element + 1)
        mask = held.mask[one] if held.mask is not None and held.mask.shape[0] > 1 else held.mask
        sink = None if held.sink_mass is None else held.sink_mass[one]
        kept.append(replace(held, weights=held.weights[one], mask=mask, sink_mass=sink))
    return AttentionMaps(kept, tokens=maps.tokens and (maps.tokens[elements[0]],))


def _tokens_of(
    maps: AttentionMaps, held: LayerAttention, element: int
) -> tuple[str | int, ...] | None:
    return None if maps.tokens is None or held.kind == "cross" else maps.tokens[element]


def _panel(held: LayerAttention, heads: int) -> tuple[float, float]:
    """Width and height of one panel in inches."""
    side = 3.0 if heads <= 4 else 2.2 if heads <= 16 else 1.2
    ratio = min(max(held.n_query / held.n_key, 0.125), 8.0)
    return side * min(1.0, 1 / ratio), side * min(1.0, ratio)


def _figsize(panel: tuple[float, float], rows: int, columns: int) -> tuple[float, float]:
    return columns * (panel[0] + 0.3) + 1.8, rows * (panel[1] + 0.35) + 1.3


def _places(layers: Sequence[LayerAttention], columns: int) -> list[tuple[int, int]]:
    """Row and column of each head in turn."""
    if len(layers) == 1:
        return [divmod(number, columns) for number in range(layers[0].n_heads)]
    return [(row, column) for row, held in enumerate(layers) for column in range(held.n_heads)]


def _label_side(
    ax: Axes,
    which: Literal["x", "y"],
    tokens: Sequence[str | int] | None,
    starts: Sequence[int],
    inches: float,
) -> None:
    """Label one side of a panel: with tokens if they fit, None: with a few positions, (): not."""
    fits = len(starts) == 1 or starts[1] - starts[0] == 1
    if tokens is not None and not len(tokens):
        (ax.set_xticks if which == "x" else ax.set_yticks)([])
    elif tokens is not None and fits and len(starts) * LABEL_INCHES <= inches:
        size = min(9.0, max(5.0, 50 * inches / len(starts)))
        label_axis(ax, which, tokens, starts, most=len(starts), fontsize=size)
    else:
        label_axis(ax, which, None, starts, most=3, fontsize=5.0 if inches < 1.5 else 7.0)
    ax.tick_params(length=2, pad=1)


def _title(heads: Sequence[tuple[LayerAttention, int, int]]) -> str:
    first = heads[0][0]
    size = f"{first.n_query} queries x {first.n_key} keys"
    return f"{len(heads)} head{'s' * (len(heads) != 1)}, {size}"
