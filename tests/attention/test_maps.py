"""`AttentionMaps` reads like a sequence, and survives the disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from attncheck.attention import AttentionMaps, LayerAttention, head_name


def make_maps() -> AttentionMaps:
    """Two layers, the second with everything a layer can carry."""
    first = LayerAttention(torch.eye(3).expand(2, 4, 3, 3), name="layers.0.attn", causal=True)
    second = LayerAttention(
        torch.full((2, 2, 3, 3), 0.25, dtype=torch.float16),
        name="layers.1.attn",
        index=1,
        kind="self",
        backend="sdpa",
        n_key_value_heads=1,
        mask=torch.ones(2, 1, 1, 3, dtype=torch.bool),
        heads=(1, 3),
        sink_mass=torch.full((2, 2, 3), 0.25),
        call=2,
        status="unfaithful",
    )
    return AttentionMaps([first, second], tokens=(("<bos>", "a", "b"), ("<bos>", "c", "d")))


def test_is_a_sequence_of_tensors() -> None:
    maps = make_maps()
    assert len(maps) == maps.n_layers == 2
    assert maps[1] is maps["layers.1.attn"] is list(maps)[1]
    assert maps[-1].shape == (2, 2, 3, 3)
    assert maps[:1].names == ("layers.0.attn",)
    assert maps[:1].tokens == maps.tokens
    assert repr(maps) == "AttentionMaps(2 layers, 6 heads, float16/float32)"
    with pytest.raises(KeyError, match=r"no layer named 'x'; the layers are layers\.0\.attn"):
        maps["x"]
    for number in (2, -3):
        with pytest.raises(IndexError, match=rf"no layer {number}; .* 0 to 1: layers\.0\.attn, la"):
            maps[number]
    with pytest.raises(IndexError, match="no layer 0; there are 0"):
        AttentionMaps([])[0]


def test_numbers_of_any_library_choose_a_layer_and_nothing_else_does() -> None:
    maps = make_maps()
    assert maps[np.int64(1)] is maps[torch.tensor(1)] is maps[1]  # type: ignore[call-overload]
    for wrong in (None, 1.0, True, (0, 1), torch.tensor([1])):
        with pytest.raises(TypeError, match="expected a number, name or slice"):
            maps[wrong]  # type: ignore[call-overload]


def test_layers_are_shown_without_their_numbers() -> None:
    first, second = make_maps().layers
    assert (
        repr(first)
        == "LayerAttention('layers.0.attn', (2, 4, 3, 3) float32, unknown, given, causal)"
    )
    assert repr(second).endswith("(2, 2, 3, 3) float16, self, sdpa, unfaithful)")


def test_a_layer_knows_its_shape_and_fills_its_defaults() -> None:
    layer = make_maps().layers[0]
    assert (layer.batch, layer.n_heads, layer.n_query, layer.n_key) == (2, 4, 3, 3)
    assert layer.heads == (0, 1, 2, 3)
    assert layer.n_key_value_heads == 4
    assert make_maps().layers[1].heads == (1, 3)
    assert head_name(5, 1) == "L5H1"


def test_to_moves_weights_and_leaves_masks_bool() -> None:
    moved = make_maps().to(torch.float64)
    assert moved[1].dtype == torch.float64
    assert moved.layers[1].mask is not None
    assert moved.layers[1].mask.dtype == torch.bool
    assert moved.layers[1].sink_mass is not None
    assert moved.layers[1].sink_mass.dtype == torch.float64


def test_saving_keeps_everything(tmp_path: Path) -> None:
    maps = make_maps()
    path = maps.save(tmp_path / "maps.safetensors")
    back = AttentionMaps.load(path)
    assert back.tokens == maps.tokens
    for ours, theirs in zip(maps.layers, back.layers, strict=True):
        assert torch.equal(ours.weights, theirs.weights)
        assert ours.weights.dtype == theirs.weights.dtype
        for field in ("name", "index", "kind", "backend", "n_key_value_heads", "causal"):
            assert getattr(ours, field) == getattr(theirs, field)
        assert (ours.heads, ours.call, ours.status) == (theirs.heads, theirs.call, theirs.status)
        for field in ("mask", "sink_mass"):
            mine, other = getattr(ours, field), getattr(theirs, field)
            assert (mine is None and other is None) or torch.equal(mine, other)
    assert [file.name for file in tmp_path.iterdir()] == ["maps.safetensors"]


def test_equal_maps_make_equal_files_of_ordinary_mode(tmp_path: Path) -> None:
    first, second = make_maps().save(tmp_path / "a"), make_maps().save(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    plain = tmp_path / "plain"
    plain.touch()
    assert first.stat().st_mode == plain.stat().st_mode


def test_a_failed_save_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_maps().save(tmp_path / "maps.safetensors")
    before = path.read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("attncheck.attention.storage.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        make_maps().save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["maps.safetensors"]


def test_foreign_and_damaged_files_are_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.ones(1)}, foreign)
    with pytest.raises(ValueError, match=r"holds schema None, expected 'attncheck.maps.1'"):
        AttentionMaps.load(foreign)
    whole = make_maps().save(tmp_path / "maps.safetensors").read_bytes()
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        AttentionMaps.load(damaged)
    with pytest.raises(FileNotFoundError):
        AttentionMaps.load(tmp_path / "absent.safetensors")


def test_other_weights_in_a_layer_are_other_queries() -> None:
    layer = replace(LayerAttention(torch.eye(3)[None, None]), weights=torch.eye(5)[None, None])
    assert layer.query_positions().tolist() == [0, 1, 2, 3, 4]
    assert layer.positional


def test_what_is_no_layer_is_named() -> None:
    for wrong in (None, torch.eye(3), [torch.eye(3)]):
        with pytest.raises(TypeError, match=r"layers: one is .*; expected LayerAttention; as_at"):
            AttentionMaps([wrong])  # type: ignore[list-item]
    with pytest.raises(
        ValueError, match=r"weights: has shape \(3, 3\); expected \(batch, head, qu"
    ):
        LayerAttention(torch.eye(3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="weights: is list; expected a tensor or a QueryKey"):
        LayerAttention([[1.0]])  # type: ignore[arg-type]


def test_folders_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder; expected a file that"):
        AttentionMaps.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"path: there is no folder .*nowhere to write a"):
        make_maps().save(tmp_path / "nowhere" / "a.safetensors")
