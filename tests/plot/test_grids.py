"""`plot_heads`, `plot_head_map` and `plot_statistics`."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from attncheck import (
    AttentionMaps,
    LayerAttention,
    create_synthetic_attention,
    plot_head_map,
    plot_heads,
    plot_statistics,
    profile_attention,
)
from attncheck.models import load_tiny_model, repeated_tokens, tokens_of
from attncheck.patterns import PATTERNS, VERDICTS, HeadLabel, HeadLabels, PatternScore
from attncheck.plot.labels import tick_step
from attncheck.plot.palette import PATTERN_STYLES, ink_on, style_of


def two_layers(n: int = 12, batch: int = 1) -> list[torch.Tensor]:
    names = (("diagonal", "uniform"), ("first_token", "previous_token"))
    return [
        torch.cat([create_synthetic_attention(n, name, seed=0, batch=batch) for name in row], 1)
        for row in names
    ]


def test_each_head_has_a_panel_with_its_name_and_pattern() -> None:
    layers = two_layers()
    figure = plot_heads(layers)
    titles = [ax.get_title() for ax in figure.axes[:4]]
    assert titles == ["L0H0 diagonal", "L0H1 uniform", "L1H0 first token", "L1H1 previous token"]
    for ax, (layer, head) in zip(figure.axes, itertools.product((0, 1), (0, 1)), strict=False):
        np.testing.assert_allclose(
            np.ma.getdata(ax.images[0].get_array()), layers[layer][0, head], atol=1e-9
        )


def test_layers_of_unequal_width_keep_their_rows() -> None:
    maps = AttentionMaps(
        [
            LayerAttention(torch.eye(9).expand(1, 1, 9, 9), index=0),
            LayerAttention(torch.eye(9).expand(1, 3, 9, 9), index=1, heads=(2, 4, 6)),
        ]
    )
    figure = plot_heads(maps, labels=[])
    places = [ax.get_subplotspec() for ax in figure.axes[:4]]
    assert [place.rowspan.start for place in places if place] == [0, 1, 1, 1]
    assert [ax.get_title() for ax in figure.axes[:4]] == ["L0H0", "L1H2", "L1H4", "L1H6"]


def test_panels_show_the_chosen_layer_and_sequence() -> None:
    layers = two_layers(batch=2)
    layers[1][1] = layers[0][1]
    figure = plot_heads(layers, layer=-1, batch=1, title="mine")
    assert [ax.get_title() for ax in figure.axes[:2]] == ["L1H0 diagonal", "L1H1 uniform"]
    assert figure.get_suptitle() == "mine"


def test_few_heads_get_their_tokens_and_many_get_positions() -> None:
    tokens = [f"t{i}" for i in range(12)]
    small = plot_heads(two_layers(), tokens=tokens, labels=[])
    keys = [[label.get_text() for label in ax.get_xticklabels()] for ax in small.axes[:4]]
    queries = [[label.get_text() for label in ax.get_yticklabels()] for ax in small.axes[:4]]
    assert keys == [[], [], tokens, tokens]  # the lowest panel of each column
    assert queries == [tokens, [], tokens, []]  # the leftmost of each row
    large = plot_heads(torch.eye(40).expand(20, 40, 40), tokens=range(40), labels=[])
    assert [label.get_text() for label in large.axes[19].get_xticklabels()] == ["0", "16", "32"]


def test_long_sequences_are_added_up() -> None:
    figure = plot_heads(torch.eye(200).expand(2, 200, 200), labels=[])
    shown = np.ma.getdata(figure.axes[0].images[0].get_array())
    np.testing.assert_allclose(shown, np.eye(50), atol=1e-9)
    assert figure.axes[-1].get_ylabel() == "Attention mass per block"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention": torch.eye(4).expand(2, 1, 4, 4)}, "batch of 2 sequences"),
        ({"attention": torch.eye(2).expand(401, 2, 2)}, "401 heads, more than the 400"),
        (
            {"attention": torch.eye(4), "labels": [HeadLabel(0, 0, "local", 0.1)] * 2},
            "labels: 2 labels for 1 heads",
        ),
    ],
)
def test_wrong_grids_say_what_to_do(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_heads(**arguments)  # type: ignore[arg-type]


def labels() -> HeadLabels:
    score = PatternScore("induction", 0.9, 0.1, 0.89, 0.8)
    return HeadLabels(
        [
            HeadLabel(0, 0, "induction", 0.7, (score,)),
            HeadLabel(0, 3, "mixed", 0.0, (score,)),
            HeadLabel(4, 0, "induction", 0.7, (score,)),
            HeadLabel(4, 3, "my_own_pattern", 0.7),
        ]
    )


def test_head_map_says_each_pattern_by_colour_and_by_word() -> None:
    ax = plot_head_map(labels())
    words = {text.get_position(): text.get_text() for text in ax.texts}
    assert words[0, 0] == words[0, 1] == "induct\n0.90"
    assert words[1, 0] == "mixed"
    assert words[1, 1] == "my_own"
    codes = np.ma.getdata(ax.images[0].get_array())
    assert codes[0, 0] == codes[1, 0]
    assert len(set(codes.ravel())) == 3
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "induction",
        "mixed",
        "my own pattern",
    ]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "3"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0", "4"]


def test_head_map_takes_labels_profiles_and_attention() -> None:
    layers = two_layers()
    from_attention = plot_head_map(layers)
    from_profile = plot_head_map(profile_attention(layers))
    from_labels = plot_head_map(list(profile_attention(layers).classify()))
    said = [[text.get_text() for text in ax.texts] for ax in (from_attention, from_profile)]
    assert said[0] == said[1] == [text.get_text() for text in from_labels.texts]
    assert [word.split("\n")[0] for word in said[0]] == ["self", "unif", "first", "prev"]


def test_head_map_finds_token_patterns_if_given_tokens() -> None:
    model, ids = load_tiny_model(), repeated_tokens(12)
    from attncheck import AttentionExtractor

    maps = AttentionExtractor(model).get_attention(ids)
    ax = plot_head_map(maps, tokens=tokens_of(ids))
    assert [text.get_text().split("\n")[0] for text in ax.texts][1:] == ["prev", "induct", "induct"]


def test_head_map_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="heads: empty"):
        plot_head_map(HeadLabels([]))


def test_every_pattern_has_a_colour_and_word_of_its_own() -> None:
    assert set(PATTERN_STYLES) == {*PATTERNS, *VERDICTS}
    colours, words = zip(*PATTERN_STYLES.values(), strict=True)
    assert len(set(words)) == len(set(colours)) == len(PATTERN_STYLES)
    for one, other in itertools.combinations(colours, 2):
        difference = np.abs(np.subtract(to_rgb(one), to_rgb(other))).sum()
        assert difference > 0.12, (one, other)
    assert style_of("something_else") == ("#FFFFFF", "someth")
    for colour in colours:
        linear = [((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        luminance = np.dot((0.2126, 0.7152, 0.0722), linear) + 0.05
        white = ink_on(to_rgb(colour)) == "white"
        assert (1.05 / luminance if white else luminance / 0.05) > 4.4


def test_statistics_are_those_of_the_profile() -> None:
    layers = two_layers()
    profile = profile_attention(layers)
    measures = ("normalized_entropy", "effective_keys", "previous_token")
    figure = plot_statistics(layers, measures, title="a model")
    for ax, name in zip(figure.axes, measures, strict=False):
        np.testing.assert_allclose(np.ma.getdata(ax.images[0].get_array()), profile[name])
        assert ax.get_title() == name.replace("_", " ")
        written = [text.get_text() for text in ax.texts]
        assert written == [f"{value:.2f}"[:4] for value in profile[name].ravel()]
    assert figure.axes[0].images[0].get_clim() == (0, 1)
    assert figure.axes[1].images[0].get_clim() == (0, profile["effective_keys"].max())
    units = [ax.get_ylabel() for ax in figure.axes[3:]]
    assert units == ["share", "keys", "share"]


@pytest.mark.parametrize(
    ("plot", "arguments", "message"),
    [
        (plot_heads, {"labels": 3}, "labels: is int; expected a list of HeadLabel"),
        (plot_heads, {"labels": "ab"}, "labels: is str"),
        (plot_heads, {"labels": ["a", "b"]}, "labels: 'a' is str; expected HeadLabel"),
        (plot_heads, {"batch": 0.5}, "batch: 0.5 is float"),
        (plot_statistics, {"measures": 3}, "measures: 3 is int; expected names"),
        (plot_statistics, {"measures": [None]}, "measures: None is NoneType"),
        (plot_heads, {"figsize": 3}, "figsize: 3; expected width and height in inches"),
        (plot_statistics, {"figsize": "big"}, "figsize: 'big'; expected width and height"),
        (plot_head_map, {"figsize": 3}, "figsize: 3; expected width and height in inches"),
        (plot_head_map, {"ax": "left"}, "ax: is str; expected one matplotlib Axes"),
    ],
)
def test_arguments_of_another_kind_are_named(
    plot: Callable[..., object], arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(TypeError, match=f"^{message}"):
        plot(torch.eye(8).expand(2, 8, 8), **arguments)


def test_statistics_name_unknown_measures() -> None:
    with pytest.raises(ValueError, match=r"measures: .*wit"):
        plot_statistics(torch.eye(8), "wit")
    with pytest.raises(ValueError, match="measures: empty"):
        plot_statistics(torch.eye(8), [])


@pytest.mark.parametrize("plot", [plot_heads, plot_head_map, plot_statistics])
def test_grids_save_stable_bytes(tmp_path: Path, plot: object) -> None:
    for name in ("a.png", "b.png"):
        plot(two_layers(), save_path=tmp_path / name)  # type: ignore[operator]
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("count", "most", "step"), [(1, 1, 1), (64, 64, 1), (65, 64, 2), (128, 25, 8), (100, 3, 40)]
)
def test_steps_between_labels_are_round(count: int, most: int, step: int) -> None:
    assert tick_step(count, most) == step


def test_no_plot_touches_pyplot_or_opens_a_window() -> None:
    code = (
        "import sys, torch, attncheck as a\n"
        "w = torch.eye(8).expand(2, 8, 8)\n"
        "a.plot_attention_heatmap(w[0]); a.plot_heads(w)\n"
        "a.plot_head_map(w); a.plot_statistics(w)\n"
        "print([m for m in sys.modules if m.startswith(('matplotlib.pyplot', 'tkinter'))])\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_statistics_name_the_heads_that_a_profile_holds() -> None:
    chosen = [(2, (3, 7)), (4, (0, 7, 9))]
    maps = AttentionMaps(
        LayerAttention(torch.eye(9).expand(1, len(heads), 9, 9), index=index, heads=heads)
        for index, heads in chosen
    )
    ax = plot_statistics(maps, "max_weight").axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "3", "7", "9"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["2", "4"]
    written = {text.get_position() for text in ax.texts}
    assert written == {(1, 0), (2, 0), (0, 1), (2, 1), (3, 1)}


def test_statistics_of_a_maximum_keep_the_unit_of_the_measure() -> None:
    figure = plot_statistics(torch.full((9, 9), 1 / 9), ["effective_keys.max"])
    assert figure.axes[0].images[0].get_clim() == (0, pytest.approx(9, abs=1e-5))
    assert figure.axes[1].get_ylabel() == "keys"


def test_statistics_mark_a_head_without_a_value() -> None:
    figure = plot_statistics(torch.ones(2, 1, 1), ["normalized_entropy", "max_weight"])
    written = [[text.get_text() for text in ax.texts] for ax in figure.axes[:2]]
    assert written == [["-", "-"], ["1.00", "1.00"]]


@pytest.mark.parametrize(("keys", "written"), [(8, "8.00"), (40, "40.0"), (300, "300")])
def test_long_numbers_keep_to_their_cells(keys: int, written: str) -> None:
    even = torch.full((12, 2, keys), 1 / keys)
    figure = plot_statistics(even, ["effective_keys"])
    texts = figure.axes[0].texts
    assert {text.get_text() for text in texts} == {written}
    boxes = [text.get_window_extent(figure.canvas.get_renderer()) for text in texts]  # type: ignore[attr-defined]
    assert not any(a.overlaps(b) for a, b in pairwise(boxes))
