"""`plot_attention_heatmap`: what is drawn is what was given, and tokens stand as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from attncheck import AttentionMaps, LayerAttention, create_synthetic_attention
from attncheck.plot import plot_attention_heatmap


def weights(*shape: int, causal: bool = False, seed: int = 0) -> torch.Tensor:
    scores = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2
    if causal:
        hidden = torch.ones(shape[-2:], dtype=torch.bool).triu(1 + shape[-1] - shape[-2])
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores.softmax(-1)


def drawn(ax: Axes) -> np.ma.MaskedArray[Any, Any]:
    array = ax.images[0].get_array()
    assert isinstance(array, np.ma.MaskedArray)
    return array


def labels(ax: Axes, which: str) -> list[str]:
    ticks = ax.get_xticklabels() if which == "x" else ax.get_yticklabels()
    return [tick.get_text() for tick in ticks]


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (6, 20), (20, 6), (1, 32), (128, 128)])
def test_draws_the_weights_themselves(shape: tuple[int, int]) -> None:
    given = weights(*shape)
    ax = plot_attention_heatmap(given)
    np.testing.assert_array_equal(drawn(ax).data, given.double().numpy())
    assert not drawn(ax).mask.any()
    assert ax.images[0].get_clim() == (0, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_takes_every_dtype_and_gradients(dtype: torch.dtype) -> None:
    given = weights(5, 5).to(dtype).requires_grad_()
    ax = plot_attention_heatmap(given)
    np.testing.assert_array_equal(drawn(ax).data, given.detach().double().numpy())


def test_keys_that_may_not_be_seen_are_blank_unless_there_is_weight_on_them() -> None:
    given = weights(6, 6, causal=True)
    assert (drawn(plot_attention_heatmap(given)).mask == np.triu(np.ones((6, 6)), 1)).all()
    leaking = given.clone()
    leaking[2] = torch.tensor([0.2, 0.2, 0.2, 0, 0.4, 0])
    mask = drawn(plot_attention_heatmap(leaking, causal=True)).mask
    assert not mask[2, 4]
    assert mask[2, 3]
    assert mask[2, 5]


def test_rows_of_padding_are_blank_and_hold_no_nan() -> None:
    given = weights(4, 4)
    given[:, 3] = 0
    given = given / given.sum(-1, keepdim=True)
    given[3] = torch.nan
    ax = plot_attention_heatmap(given, mask=torch.tensor([1, 1, 1, 0]))
    assert drawn(ax).mask[3].all()
    assert np.isfinite(drawn(ax).data).all()


@pytest.mark.parametrize(("rows", "columns"), [(300, 300), (129, 129), (10, 513), (513, 10)])
def test_long_sequences_are_added_up_in_blocks(rows: int, columns: int) -> None:
    given = weights(rows, columns)
    ax = plot_attention_heatmap(given)
    high, wide = -(-rows // 128), -(-columns // 128)
    expected = np.array(
        [
            [
                given[top : top + high, left : left + wide].double().sum(-1).mean().item()
                for left in range(0, columns, wide)
            ]
            for top in range(0, rows, high)
        ]
    )
    np.testing.assert_allclose(drawn(ax).data, expected, atol=1e-9)
    np.testing.assert_allclose(drawn(ax).data.sum(-1), 1, atol=1e-6)
    assert (f"blocks of {wide} tokens" in ax.get_xlabel()) == (wide > 1)
    assert (f"blocks of {high} tokens" in ax.get_ylabel()) == (high > 1)
    bar = ax.figure.axes[1].get_ylabel()
    assert bar.startswith("Attention mass per")


def test_a_block_of_a_causal_head_is_blank_only_where_all_of_it_is_hidden() -> None:
    mask = drawn(plot_attention_heatmap(weights(256, 256, causal=True))).mask
    assert (mask == np.triu(np.ones((128, 128)), 1)).all()


def test_tokens_stand_verbatim_on_both_axes() -> None:
    tokens = ["$x_1$", "a_b", "^", "{", "\\frac", "Ġthe", "▁the", "<s>", "%d", "日"]
    ax = plot_attention_heatmap(weights(10, 10), tokens)
    shown = [*tokens[:-1], "\\u65e5"]  # no configured font has the last
    assert labels(ax, "x") == shown
    assert labels(ax, "y") == shown
    assert not any(tick.get_parse_math() for tick in ax.get_xticklabels() + ax.get_yticklabels())
    ax.figure.canvas.draw()  # parsing "$x_1$" or a missing glyph would raise here


def test_invisible_tokens_are_made_visible() -> None:
    ax = plot_attention_heatmap(weights(6, 6), ["\n", "\t", "", " a ", "  ", "\x00"])
    assert labels(ax, "x") == ["\\n", "\\t", "''", "␣a␣", "␣␣", "\\x00"]
    ax.figure.canvas.draw()


def test_long_tokens_are_cut() -> None:
    ax = plot_attention_heatmap(weights(2, 2), ["a" * 16, "b" * 17])
    assert labels(ax, "x") == ["a" * 16, "b" * 15 + "…"]


def test_titles_are_literal_and_folded() -> None:
    ax = plot_attention_heatmap(weights(2, 2), title="costs $5 and $6 " * 20)
    assert not ax.title.get_parse_math()
    assert ax.get_title().replace("\n", " ") == ("costs $5 and $6 " * 20).strip()
    assert len(ax.get_title().splitlines()) > 2


def test_decoding_step_takes_its_query_tokens_from_the_keys() -> None:
    ax = plot_attention_heatmap(weights(2, 4, causal=True), ["a", "b", "c", "d"], causal=True)
    assert labels(ax, "y") == ["c", "d"]


def test_cross_attention_has_tokens_of_its_own() -> None:
    layer = LayerAttention(weights(1, 1, 3, 3), kind="cross")
    ax = plot_attention_heatmap(layer, ["a", "b", "c"])
    assert labels(ax, "y") == ["0", "1", "2"]
    ax = plot_attention_heatmap(layer, ["a", "b", "c"], ["x", "y", "z"])
    assert labels(ax, "y") == ["x", "y", "z"]


def test_many_tokens_are_labelled_with_their_positions() -> None:
    ax = plot_attention_heatmap(weights(100, 100), [f"t{i}" for i in range(100)])
    assert labels(ax, "x") == [f"{i} t{i}" for i in range(0, 100, 2)]
    assert [int(tick) for tick in ax.get_xticks()] == list(range(0, 100, 2))


def test_maps_bring_tokens_names_and_heads() -> None:
    maps = AttentionMaps(
        [LayerAttention(weights(2, 2, 3, 3), name="h.7.attn", index=7, backend="sdpa")],
        tokens=(("a", "b", "c"), ("d", "e", "f")),
    )
    ax = plot_attention_heatmap(maps, head="L7H1", batch=1)
    assert labels(ax, "x") == ["d", "e", "f"]
    assert "L7H1" in ax.get_title()
    assert "h.7.attn" in ax.get_title()
    np.testing.assert_array_equal(drawn(ax).data, maps[0][1, 1].double().numpy())
    same = plot_attention_heatmap(maps, layer="h.7.attn", head=1, batch=-1)
    np.testing.assert_array_equal(drawn(same).data, drawn(ax).data)


@pytest.mark.parametrize(
    ("shape", "chosen", "message"),
    [
        ((2, 4, 4), {}, r'holds 2 heads \(L0H0, L0H1\).*head="L0H0".*plot_heads'),
        ((2, 1, 4, 4), {}, "batch of 2 sequences.*batch=0 to batch=1"),
        ((1, 1, 4, 4), {"batch": 1}, "batch: 1 of a batch of 1"),
        ((2, 4, 4), {"head": 2}, "no head 2; the heads are L0H0, L0H1"),
        ((4, 4), {"layer": 1}, "layer: 1 of 1 layers; expected -1 to 0"),
        ((4, 4), {"layer": "x"}, "layer: no layer named 'x'"),
        ((4, 4), {"x_tokens": ["a"]}, "x_tokens: 1 tokens for 4 keys"),
        ((4, 4), {"y_tokens": ["a"] * 5}, "y_tokens: 5 tokens for 4 queries"),
        ((4, 4), {"x_tokens": "abcd"}, "got one string 'abcd'"),
        ((64, 64), {"show_values": True}, "64 x 64 cells would not be readable"),
        ((4, 4), {"save_path": "a.docx"}, "save_path: no format 'docx'; known are"),
    ],
)
def test_wrong_choices_say_what_to_do(
    shape: tuple[int, ...], chosen: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plot_attention_heatmap(weights(*shape), **chosen)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"x_tokens": 3}, "x_tokens: got int; expected a list of tokens"),
        ({"y_tokens": True}, "y_tokens: got bool"),
        ({"batch": "first"}, "batch: 'first' is str; expected the number of a sequence"),
        ({"vmin": "low"}, "vmin: got str; expected a weight"),
        ({"vmax": [1]}, "vmax: got list"),
        ({"ax": np.array([None])}, "ax: is ndarray; expected one matplotlib Axes"),
        ({"figsize": 3}, "figsize: 3; expected width and height in inches, as \\(6, 4\\)"),
        ({"figsize": (3,)}, "figsize: \\(3,\\); expected width and height"),
        ({"figsize": ("a", 2)}, "figsize: got str; expected inches"),
    ],
)
def test_arguments_of_another_kind_are_named(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=f"^{message}"):
        plot_attention_heatmap(weights(4, 4), **chosen)


def test_a_size_may_be_any_pair_of_numbers_above_0() -> None:
    for size in ((3, 2), [3, 2], np.array([3.0, 2.0])):
        figure = plot_attention_heatmap(weights(4, 4), figsize=size).figure  # type: ignore[arg-type]
        assert tuple(figure.get_size_inches()) == (3, 2)
    for wrong in ((3, 0), (3, float("nan")), (1e9, 1)):
        with pytest.raises(ValueError, match=r"figsize: .*; expected inches between 0.1 and 400"):
            plot_attention_heatmap(weights(4, 4), figsize=wrong)


def test_a_title_may_be_anything() -> None:
    assert plot_attention_heatmap(weights(4, 4), title=3).get_title() == "3"  # type: ignore[arg-type]


def test_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="apply softmax"):
        plot_attention_heatmap(torch.randn(4, 4).sub(9))
    with pytest.raises(TypeError, match="None"):
        plot_attention_heatmap(None)


def test_values_are_written_readably() -> None:
    ax = plot_attention_heatmap(torch.tensor([[1.0, 0.0], [0.25, 0.75]]), show_values=True)
    written = {text.get_position(): (text.get_text(), text.get_color()) for text in ax.texts}
    assert written == {  # key 1 is hidden from query 0
        (0, 0): ("1.00", "black"),
        (0, 1): ("0.25", "white"),
        (1, 1): ("0.75", "black"),
    }


def test_adaptive_range_is_that_of_the_data() -> None:
    given = weights(4, 4)
    ax = plot_attention_heatmap(given, vmin=None, vmax=None)
    assert ax.images[0].get_clim() == (given.min().item(), given.max().item())


def test_draws_into_given_axes_also_of_a_subfigure(tmp_path: Path) -> None:
    figure = Figure()
    FigureCanvasAgg(figure)
    part, _ = figure.subfigures(1, 2)
    ax = part.add_subplot()
    assert plot_attention_heatmap(weights(3, 3), ax=ax, save_path=tmp_path / "a.png") is ax
    assert (tmp_path / "a.png").stat().st_size > 0


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_one_picture_has_one_sequence_of_bytes(tmp_path: Path, suffix: str) -> None:
    given = create_synthetic_attention(12, "local", seed=0)
    paths = [tmp_path / "new" / f"{name}.{suffix}" for name in "ab"]
    for path in paths:
        plot_attention_heatmap(given, [f"t{i}" for i in range(12)], save_path=path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert b"Software" not in paths[0].read_bytes()  # the version of matplotlib
    assert sorted(paths[0].parent.iterdir()) == paths


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(self: Figure, file: str, **options: object) -> None:
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(KeyboardInterrupt):
        plot_attention_heatmap(weights(3, 3), save_path=path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_takes_the_classic_arguments_by_position(tmp_path: Path) -> None:
    tokens = ["a", "b", "c"]
    path = tmp_path / "map.png"
    given = (weights(3, 3), tokens, None, "mine", (4, 3), "plasma", True, path)
    ax = plot_attention_heatmap(*given)
    assert ax.get_title() == "mine"
    assert ax.images[0].get_cmap().name == "plasma"
    assert len(ax.texts) == 9
    assert path.stat().st_size > 0


def test_a_picture_is_an_ordinary_file(tmp_path: Path) -> None:
    path = tmp_path / "map.png"
    plot_attention_heatmap(weights(3, 3), save_path=path)
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_titles_escape_what_no_font_has(tmp_path: Path) -> None:
    ax = plot_attention_heatmap(weights(3, 3), title="$x$ 日\tend\nnext")
    assert ax.get_title() == "$x$ \\u65e5\\tend\nnext"
    assert isinstance(ax.figure, Figure)
    ax.figure.savefig(tmp_path / "map.png")  # a missing glyph would warn


def test_attention_without_a_visible_key_says_so() -> None:
    mask = torch.zeros(1, 4, dtype=torch.long)
    ax = plot_attention_heatmap(torch.zeros(1, 1, 4, 4), mask=mask, causal=False)
    assert [text.get_text() for text in ax.texts] == ["no query sees a key"]


def test_an_unknown_colormap_is_named() -> None:
    with pytest.raises(ValueError, match="'vridis' is not a valid value for cmap"):
        plot_attention_heatmap(weights(3, 3), cmap="vridis")
