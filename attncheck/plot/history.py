"""`plot_history`: measures of every head over the steps of a training run, alerts marked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from attncheck.attention.arguments import words
from attncheck.monitor import HeadAlert, HeadHistory, units
from attncheck.plot.canvas import new_figure, save_figure
from attncheck.plot.labels import LITERAL

__all__ = ["plot_history"]

SHOWN: Final = ("normalized_entropy", "max_logit", "sink_mass", "output_rms", "twin_distance")
"""Measures of a figure that nobody chose: one for each kind of alert."""

MEASURE_OF: Final[Mapping[str, str]] = MappingProxyType(
    {
        "entropy_collapse": "normalized_entropy",
        "max_logit": "max_logit",
        "sink_growth": "sink_mass",
        "dead": "output_rms",
        "duplicate": "twin_distance",
        "not_finite": "bad_rows",
    }
)
"""The measure in which an alert is seen."""

LIMITS: Final = MappingProxyType({"entropy_collapse": "collapse", "max_logit": "max_logit"})
"""Kinds of alert whose threshold is one height for all heads, and its name."""

MOST_NAMED: Final = 6
"""Alerts of one measure beyond this are marked without the head's name."""

LINE: Final = 9
WIDTH: Final = 90
"""Points that an alert's name takes, up and across."""


def plot_history(
    history: HeadHistory,
    measures: Sequence[str] = SHOWN,
    *,
    title: str | None = None,
    save_path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draw measures of all heads over the steps, one panel a measure, one line a head.

    Lines are coloured by layer; an alert is a red ring with the name of its head, the threshold a
    dashed line. An alert of a measure that is not drawn has its own panel.

    Args:
        history: What a `HeadMonitor` saw.
        measures: Which ones to draw; those that were not measured are left out.
        title: Over the figure. Default: what the history is.
        save_path: Write the figure there (png, svg, pdf).

    Raises:
        TypeError: ``history`` is none, or ``measures`` holds no names.
        ValueError: The history is empty, or holds none of the measures.

    Example:
        >>> from attncheck import HeadMonitor
        >>> from attncheck.models import TinyTransformer, repeated_tokens
        >>> model = TinyTransformer().train()
        >>> with HeadMonitor(model, every=1) as monitor:
        ...     outputs = [model(repeated_tokens(8)) for _ in range(3)]
        >>> figure = plot_history(monitor.history, ["entropy"])
        >>> len(figure.axes), len(figure.axes[0].lines)
        (1, 4)
    """
    if not isinstance(history, HeadHistory):
        raise TypeError(
            f"history: is {type(history).__name__}; expected the history of a HeadMonitor, or "
            "HeadHistory.load(path)"
        )
    measures = words(measures, "measures", "names such as 'entropy'")
    if not len(history):
        raise ValueError("history: holds no samples")
    seen = [MEASURE_OF[alert.kind] for alert in history.alerts if alert.kind in MEASURE_OF]
    known = [name for name in dict.fromkeys((*measures, *seen)) if name in history.measures]
    known = [name for name in known if not np.isnan(history.values(name)).all()]
    if not known:
        raise ValueError(f"measures: none of {', '.join(measures)} was measured")
    figure = new_figure((8.0, 1.2 + 1.7 * len(known)))
    panels = figure.subplots(len(known), 1, sharex=True, squeeze=False)[:, 0]
    colours = _colours(history)
    for ax, measure in zip(panels, known, strict=True):
        _draw(ax, history, measure, colours)
    for ax, measure in zip(panels, known, strict=True):  # the steps of all panels are known by now
        _mark(ax, history, measure)
    panels[-1].set_xlabel("Training step")
    layers = dict(zip((name.partition("H")[0] for name in history.heads), colours, strict=True))
    if len(layers) <= 12:
        handles = [Line2D([], [], color=colour, label=name) for name, colour in layers.items()]
        panels[0].legend(
            handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=7, frameon=False
        )
    alerts = len(history.alerts)
    told = f"{alerts} alert{'s' * (alerts != 1)}" if alerts else "no alerts"
    name = str(history.about.get("model", "Model"))
    figure.suptitle(title or f"{name}: {len(history.heads)} heads, {told}", fontsize=11, **LITERAL)
    if save_path is not None:
        save_figure(figure, save_path)
    return figure


def _colours(history: HeadHistory) -> list[tuple[float, float, float, float]]:
    """A colour for each head: dark for the first layer, light for the last."""
    layers = [name.partition("H")[0] for name in history.heads]
    order = list(dict.fromkeys(layers))
    scale = colormaps["viridis"]
    return [scale(0.85 * order.index(name) / max(1, len(order) - 1)) for name in layers]


def _draw(
    ax: Axes,
    history: HeadHistory,
    measure: str,
    colours: Sequence[tuple[float, float, float, float]],
) -> None:
    table, steps = history.values(measure), history.steps
    marker = "." if len(steps) <= 40 else ""
    for row, colour in zip(table.T, colours, strict=True):
        ax.plot(steps, row, color=colour, linewidth=1.1, marker=marker, markersize=3, alpha=0.85)
    kinds = {alert.kind for alert in _alerts(history, measure)} & {*LIMITS}
    held = history.about.get("thresholds")
    for kind in sorted(kinds):
        limit = held.get(LIMITS[kind]) if isinstance(held, Mapping) else None
        if isinstance(limit, int | float):
            ax.axhline(limit, color="0.45", linewidth=0.8, linestyle="--")
    unit = units(measure)
    name = measure.replace("_", " ")
    ax.set_ylabel(f"{name}\n({unit})" if unit else name, fontsize=8, **LITERAL)
    ax.tick_params(labelsize=7)
    ax.grid(visible=True, axis="x", color="0.9", linewidth=0.6)
    finite = table[np.isfinite(table)]
    if unit == "share":
        ax.set_ylim(-0.04, 1.04)
    elif finite.min() > 0 and finite.max() > 30 * np.median(finite):
        ax.set_yscale("log")


def _alerts(history: HeadHistory, measure: str) -> list[HeadAlert]:
    return [alert for alert in history.alerts if MEASURE_OF.get(alert.kind) == measure]


def _mark(ax: Axes, history: HeadHistory, measure: str) -> None:
    """Draw a ring for each alert, and name its head where there are few."""
    table, alerts = history.values(measure), _alerts(history, measure)
    places = {name: place for place, name in enumerate(history.heads)}
    rows = {step: row for row, step in enumerate(history.steps)}
    names: list[tuple[float, float]] = []
    for alert in alerts:
        if alert.head not in places or alert.step not in rows:
            continue
        height = table[rows[alert.step], places[alert.head]]
        ax.plot(
            [alert.step],
            [height],
            marker="o",
            markersize=9,
            markerfacecolor="none",
            markeredgecolor="crimson",
            markeredgewidth=1.6,
            linestyle="",
        )
        if len(alerts) <= MOST_NAMED:
            _name(ax, alert, float(height), names)


def _name(ax: Axes, alert: HeadAlert, height: float, names: list[tuple[float, float]]) -> None:
    """Write an alert's head beside its ring, clear of ``names``, which has the places in points."""
    ax.get_xlim(), ax.get_ylim()  # settle limits that are put off until drawing
    place = ax.transData.transform((alert.step, height))
    across, up = ax.transAxes.inverted().transform(place)
    x, y = place * 72 / ax.figure.dpi
    offset, line = (8, LINE) if up < 0.5 else (-14, -LINE)
    while any(abs(x - left) < WIDTH and abs(y + offset - low) < LINE - 0.5 for left, low in names):
        offset += line
    names.append((x, y + offset))
    right = across > 0.75
    ax.annotate(
        f"{alert.head} {alert.kind.replace('_', ' ')}",
        (alert.step, height),
        xytext=(-8 if right else 8, offset),
        textcoords="offset points",
        horizontalalignment="right" if right else "left",
        fontsize=7,
        color="crimson",
        **LITERAL,
    )
