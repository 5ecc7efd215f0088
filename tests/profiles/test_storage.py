"""Saved profiles come back exactly; damaged and foreign files are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from attncheck.attention import LayerAttention
from attncheck.evaluate import profile_attention, profile_layer
from attncheck.profile import HeadProfile, storage
from tests.profiles.samples import Sample, samples
from tests.profiles.test_merge import profile


def example() -> HeadProfile:
    return profile_attention(torch.softmax(torch.randn(2, 1, 3, 5, 5), -1), tokens=list("ababc"))


@settings(max_examples=25)
@given(sample=samples())
def test_dict_round_trip_is_exact(sample: Sample) -> None:
    before = profile(sample)
    after = HeadProfile.from_dict(json.loads(json.dumps(before.to_dict(), allow_nan=False)))
    assert after.to_dict() == before.to_dict()
    for measure in before.measures:
        np.testing.assert_array_equal(after[measure], before[measure])
    assert after.layers[0].heads == before.layers[0].heads


def test_file_round_trip(tmp_path: Path) -> None:
    before = example()
    path = before.save(tmp_path / "heads.json")
    assert path == tmp_path / "heads.json"
    assert HeadProfile.load(path).to_dict() == before.to_dict()
    assert json.loads(path.read_text())["schema"] == "attncheck.profile.1"
    assert HeadProfile.load(path).merge(before).layers[0].counts["entropy"].tolist() == [10] * 3


def test_a_head_without_rows_survives(tmp_path: Path) -> None:
    before = profile_attention(torch.zeros(1, 3, 3), causal=False)
    after = HeadProfile.load(before.save(tmp_path / "heads.json"))
    assert np.isnan(after["entropy.max"]).all()
    assert after.layers[0].maxima["entropy"].tolist() == [-np.inf]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_seen_and_survives(tmp_path: Path, value: float) -> None:
    weights = torch.full((1, 2, 9, 9), 1 / 9)
    weights[0, 0, 4] = value
    before = HeadProfile([profile_layer(LayerAttention(weights))])
    for measure in before.layers[0].sums:
        assert np.isfinite(before[measure]).tolist() == [[False, True]], measure
    after = HeadProfile.load(before.save(tmp_path / "heads.json"))
    assert after.to_dict() == before.to_dict()
    for measure in before.layers[0].sums:
        np.testing.assert_array_equal(after[measure], before[measure])
    assert np.isposinf(after["max_weight.max"][0, 0]) == np.isinf(value)


def test_saving_makes_folders_and_an_ordinary_file(tmp_path: Path) -> None:
    path = example().save(tmp_path / "a" / "b" / "heads.json")
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_saving_replaces_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = example().save(tmp_path / "heads.json")
    before = path.read_text()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(storage.Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        profile_attention(torch.eye(3)).save(path)
    assert path.read_text() == before
    assert [found.name for found in tmp_path.iterdir()] == ["heads.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not readable JSON"),
        (b"\xff\xfe\x00", "is not readable JSON"),
        (b"", "is not readable JSON"),
        (b"[]", "holds schema None, expected 'attncheck.profile.1'"),
        (b'{"schema": "attncheck.maps.1"}', "holds schema 'attncheck.maps.1', expected"),
        (b'{"schema": "attncheck.profile.1"}', "damaged profile"),
        (b'{"schema": "attncheck.profile.1", "layers": []}', "layers: empty"),
        (b'{"schema": "attncheck.profile.1", "layers": [{}]}', "a layer lacks name, index"),
        (b'{"schema": "attncheck.profile.1", "layers": 3}', "damaged profile"),
        (b"[" * 100_000, "is not readable JSON"),
    ],
)
def test_foreign_and_damaged_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        HeadProfile.load(path)
    assert str(raised.value).startswith(f"path: {path}")


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "a short list": lambda layer: layer["metrics"]["entropy"]["sum"].pop(),
    "no counts": lambda layer: layer["metrics"]["entropy"].pop("count"),
    "an unknown metric": lambda layer: layer["metrics"].update(novelty=layer["metrics"]["entropy"]),
    "no metrics": lambda layer: layer["metrics"].clear(),
    "no evidence": lambda layer: layer["evidence"].pop("rows"),
    "another number of heads": lambda layer: layer["heads"].append(9),
    "a sum in words": lambda layer: layer["metrics"]["entropy"]["sum"].__setitem__(0, "much"),
    "a sum missing": lambda layer: layer["metrics"]["entropy"]["sum"].__setitem__(0, None),
    "half a row": lambda layer: layer["metrics"]["entropy"]["count"].__setitem__(0, 1.5),
    "less than no row": lambda layer: layer["metrics"]["entropy"]["count"].__setitem__(0, -1),
    "a layer in words": lambda layer: layer.update(index="zero"),
    "heads in letters": lambda layer: layer.update(heads="abc"),
    "causality in words": lambda layer: layer.update(causal="false"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_every_kind_of_damage_is_a_value_error(tmp_path: Path, what: str) -> None:
    held = example().to_dict()
    DAMAGE[what](held["layers"][0])
    path = tmp_path / "heads.json"
    path.write_text(json.dumps(held))
    with pytest.raises(ValueError, match=r"path: .*heads\.json"):
        HeadProfile.load(path)
    with pytest.raises(ValueError, match="held: "):
        HeadProfile.from_dict(held)


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        HeadProfile.load(tmp_path / "none.json")
