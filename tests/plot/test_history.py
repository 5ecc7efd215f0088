"""`plot_history`: a panel a measure, a line a head, a ring an alert."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from attncheck import HeadHistory, plot_history
from attncheck.monitor import HeadAlert, HeadSample


def history(steps: int = 5) -> HeadHistory:
    rng = np.random.default_rng(0)
    samples = []
    for step in range(0, 50 * steps, 50):
        alerts = ()
        if step == 100:
            alerts = (HeadAlert("max_logit", "L1H0", 100, 400.0, 100.0, "scores reach 400"),)
        logits = (3.0, 4.0, 400.0 if step >= 100 else 5.0, 2.0)
        entropy = tuple(rng.uniform(0.4, 0.6, 4).tolist())
        samples.append(
            HeadSample(
                step,
                0.0,
                ("L0H0", "L0H1", "L1H0", "L1H1"),
                {"normalized_entropy": entropy, "max_logit": logits},
                ("uniform",) * 4,
                ("",) * 4,
                alerts,
            )
        )
    return HeadHistory(samples, {"model": "Tiny $x$", "thresholds": {"max_logit": 100}})


def test_lines_rings_and_thresholds(tmp_path: Path) -> None:
    figure = plot_history(history(), save_path=tmp_path / "run.png")
    assert [ax.get_ylabel() for ax in figure.axes] == ["normalized entropy\n(share)", "max logit"]
    entropy, logits = figure.axes
    assert len(entropy.lines) == 4
    np.testing.assert_array_equal(logits.lines[2].get_ydata(), [5, 5, 400, 400, 400])
    assert logits.lines[4].get_ydata() == [100, 100]
    assert (logits.lines[5].get_xdata(), logits.lines[5].get_ydata()) == ([100], [400])
    assert [text.get_text() for text in logits.texts] == ["L1H0 max logit"]
    assert logits.get_yscale() == "log"
    assert (tmp_path / "run.png").stat().st_size > 10_000


def test_names_of_alerts_at_one_place_do_not_overlap() -> None:
    heads = ("L0H0", "L0H1", "L1H0", "L1H1")
    samples = [
        HeadSample(
            step,
            0.0,
            heads,
            {"bad_rows": (float(step > 0),) * 4},
            ("uniform",) * 4,
            ("",) * 4,
            tuple(HeadAlert("not_finite", head, 50, 1.0, 0.0, "NaN") for head in heads)
            if step == 50
            else (),
        )
        for step in range(0, 200, 50)
    ]
    figure = plot_history(HeadHistory(samples, {"model": "Tiny"}), ["bad_rows"])
    texts = figure.axes[0].texts
    assert [text.get_text() for text in texts] == [f"{head} not finite" for head in heads]
    boxes = [text.get_window_extent(figure.canvas.get_renderer()) for text in texts]  # type: ignore[attr-defined]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_alerts_of_measures_not_chosen_are_drawn_too() -> None:
    figure = plot_history(history(), ["normalized_entropy"])
    assert len(figure.axes) == 2


def test_empty_histories_and_unknown_measures_are_refused() -> None:
    with pytest.raises(ValueError, match="holds no samples"):
        plot_history(HeadHistory())
    with pytest.raises(ValueError, match="none of speed was measured"):
        plot_history(history(steps=2), ["speed"])
    with pytest.raises(TypeError, match="history: is list; expected the history of a HeadMonitor"):
        plot_history([])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="measures: 3 is int; expected names"):
        plot_history(history(), 3)  # type: ignore[arg-type]
    assert len(plot_history(history(), "normalized_entropy").axes) == 2
