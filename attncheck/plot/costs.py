"""`plot_costs`: time and memory against the length of the input, on logarithmic axes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from attncheck.benchmark import Cost, CostTable
from attncheck.plot.canvas import folded, new_figure, save_figure
from attncheck.plot.labels import LITERAL

__all__ = ["plot_costs"]

COLOURS: Final = ("#333333", "#E66101", "#2171B5", "#00655B", "#8E4FA8", "#B5B5B5", "#C51B7D")
MARKERS: Final = "osD^vPX"


def plot_costs(
    table: CostTable,
    *,
    title: str | None = None,
    save_path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draw what each way costs, one line a way: median time, and peak memory where it is known.

    Args:
        table: What was measured.
        title: Over the figure. Default: the model and the device.
        save_path: Write the figure there (png, svg, pdf).

    Raises:
        ValueError: Nothing was measured.

    Example:
        >>> from attncheck.benchmark import Cost, CostTable
        >>> costs = [Cost("plain forward", n, n / 1e3, 1.0, 100 * n) for n in (64, 128)]
        >>> figure = plot_costs(CostTable("a model", "cpu", 5, costs))
        >>> [ax.get_title() for ax in figure.axes]
        ['Time of one call', 'Peak memory of one call']
    """
    if not table.costs:
        raise ValueError("table: holds no costs")
    with_memory = any(cost.peak_bytes for cost in table.costs)
    figure = new_figure((9.6 if with_memory else 5.6, 4.6))
    panels = figure.subplots(1, 1 + with_memory, squeeze=False)[0]
    _draw(panels[0], table, "Time of one call", _clock, lambda cost: cost.seconds)
    if with_memory:
        _draw(panels[1], table, "Peak memory of one call", _size, lambda cost: cost.peak_bytes)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    text = title or f"{table.model} on {table.device}: medians of {table.rounds} rounds"
    figure.suptitle(folded(text, figure), fontsize=11, **LITERAL)
    if save_path is not None:
        save_figure(figure, save_path)
    return figure


def _draw(
    ax: Axes,
    table: CostTable,
    title: str,
    told: Callable[[float, object], str],
    value: Callable[[Cost], float | None],
) -> None:
    ax.set_yscale("log")
    for place, way in enumerate(table.ways):
        points = [(cost.length, value(cost)) for cost in table.series(way)]
        known = [(length, height) for length, height in points if height]
        ax.plot(
            [length for length, _ in known],
            [height for _, height in known],
            label=way,
            color=COLOURS[place % len(COLOURS)],
            marker=MARKERS[place % len(MARKERS)],
            markersize=5,
            linewidth=1.4,
        )
    low, high = ax.get_ylim()
    few = high < 1e3 * max(low, 1e-12)  # else decades are enough
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=16))
    lengths = sorted({cost.length for cost in table.costs})
    ax.set_xscale("log", base=2)
    ax.set_xticks(lengths, [str(length) for length in lengths])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(told))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("Tokens")
    ax.set_title(title, fontsize=10)
    ax.tick_params(labelsize=8)
    ax.grid(visible=True, color="0.92", linewidth=0.7)


def _clock(seconds: float, _: object) -> str:
    return f"{seconds:g} s" if seconds >= 1 else f"{1e3 * seconds:g} ms"


def _size(count: float, _: object) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:g} {unit}"
        count /= 1000
    return f"{count:g} GB"
