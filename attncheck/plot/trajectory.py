"""`plot_trajectory`: what every head does over the checkpoints of a training run."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from attncheck.patterns import HeadLabels
from attncheck.plot.canvas import new_figure, save_figure
from attncheck.plot.labels import LITERAL
from attncheck.plot.palette import PATTERN_STYLES, ink_on, style_of
from attncheck.profile import HeadProfile

__all__ = ["plot_trajectory"]

MOST_NAMES = 32
"""More heads than this go without short names in their cells."""


def plot_trajectory(
    steps: Sequence[str],
    profiles: Sequence[HeadProfile],
    *,
    labels: Sequence[HeadLabels] | None = None,
    title: str | None = None,
    save_path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draw the mass of each head's last pattern, and below it the label, at every checkpoint.

    Args:
        steps: Names of the checkpoints, in order.
        profiles: One per checkpoint, all of the same heads.
        labels: One per checkpoint. Default: what the profiles say.
        title: Over the figure. Default: the number of checkpoints.
        save_path: Write the figure there (png, svg, pdf).

    Raises:
        ValueError: None, or not as many steps as profiles.

    Example:
        >>> import torch
        >>> from attncheck import profile_attention
        >>> profiles = [profile_attention(m) for m in (torch.full((12, 12), 1 / 12), torch.eye(12))]
        >>> figure = plot_trajectory(["step 0", "step 100"], profiles)
        >>> [line.get_ydata().round(2).tolist() for line in figure.axes[0].lines]
        [[0.08, 1.0]]
    """
    if not profiles or len(steps) != len(profiles):
        raise ValueError(f"steps: {len(steps)} names for {len(profiles)} profiles")
    named = [profile.classify() for profile in profiles] if labels is None else list(labels)
    heads = len(named[-1])
    width = min(max(6.0, 0.55 * len(steps) + 3), 24.0)
    figure = new_figure((width, 3.2 + min(max(1.2, 0.2 * heads), 14.0)))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, max(1.5, 0.2 * heads)))
    _draw_masses(upper, profiles, named[-1])
    _draw_labels(lower, named)
    lower.set_xticks(range(len(steps)), list(steps), rotation=90, fontsize=7, **LITERAL)
    lower.set_xlabel("Checkpoint")
    figure.suptitle(title or f"{heads} heads over {len(steps)} checkpoints", fontsize=11, **LITERAL)
    if save_path is not None:
        save_figure(figure, save_path)
    return figure


def _draw_masses(ax: Axes, profiles: Sequence[HeadProfile], last: HeadLabels) -> None:
    """One line a head, in the colour of what it does in the end."""
    ends: list[tuple[float, str]] = []
    for at, label in enumerate(last):
        try:
            tables = [profile[label.label] for profile in profiles]
        except KeyError:  # a verdict, or a pattern that could not be scored before
            continue
        masses = np.array([_flat(p, table)[at] for p, table in zip(profiles, tables, strict=True)])
        colour = style_of(label.label)[0]
        ax.plot(masses, color=colour, marker=".", linewidth=1.4, label=label.name)
        ends.append((float(masses[-1]), label.name))
    if len(ends) <= MOST_NAMES // 2:
        _name_ends(ax, ends, len(profiles) - 1)
    ax.set_ylim(-0.02, 1.02)
    ax.set_ylabel("Mass of the last pattern")


def _name_ends(ax: Axes, ends: list[tuple[float, str]], column: int) -> None:
    """Name the lines at their last point, names that would meet one above the other."""
    lowest = -1.0
    for height, name in sorted(ends):
        lowest = max(height, lowest + 0.045)
        ax.text(column + 0.06, lowest, name, fontsize=6, va="center", **LITERAL)


def _flat(profile: HeadProfile, table: NDArray[np.float64]) -> list[float]:
    return [
        float(table[row, place])
        for row, layer in enumerate(profile.layers)
        for place in range(layer.n_heads)
    ]


def _draw_labels(ax: Axes, labels: Sequence[HeadLabels]) -> None:
    """Heads down, checkpoints across, a colour a pattern."""
    found = {label.label for row in labels for label in row}
    names = [name for name in PATTERN_STYLES if name in found]
    names += sorted(found - set(names))
    codes = np.array([[names.index(label.label) for label in row] for row in labels]).T
    colours = [style_of(name)[0] for name in names]
    ax.imshow(
        codes,
        cmap=ListedColormap(colours),
        vmin=-0.5,
        vmax=len(colours) - 0.5,
        aspect="auto",
        interpolation="nearest",
    )
    heads = [label.name for label in labels[0]]
    if len(heads) <= MOST_NAMES:
        ax.set_yticks(range(len(heads)), heads, fontsize=7)
        for row, column in np.ndindex(*codes.shape):
            colour, short = style_of(names[codes[row, column]])
            ax.text(
                column,
                row,
                short,
                ha="center",
                va="center",
                fontsize=6,
                color=ink_on(to_rgb(colour)),
                **LITERAL,
            )
    ax.set_ylabel("Head")
