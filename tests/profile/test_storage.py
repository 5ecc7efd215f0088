"""Saved profiles come back exactly; damaged and foreign files are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from attncheck.evaluate import profile_attention
from attncheck.profile import HeadProfile, storage
from tests.profile.samples import Sample, samples
from tests.profile.test_merge import profile


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
    ],
)
def test_foreign_and_damaged_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        HeadProfile.load(path)
    assert str(raised.value).startswith(f"path: {path}")


def _damage(held: dict[str, Any], what: str) -> None:
    layer = held["layers"][0]
    if what == "short":
        layer["metrics"]["entropy"]["sum"].pop()
    elif what == "count":
        del layer["metrics"]["gini"]["count"]
    elif what == "metric":
        layer["metrics"]["novelty"] = layer["metrics"]["gini"]
    elif what == "evidence":
        del layer["evidence"]["rows"]
    elif what == "heads":
        layer["heads"].append(9)
    else:
        layer["metrics"]["gini"]["sum"][0] = "much"


@pytest.mark.parametrize("what", ["short", "count", "metric", "evidence", "heads", "text"])
def test_every_kind_of_damage_is_a_value_error(tmp_path: Path, what: str) -> None:
    held = example().to_dict()
    _damage(held, what)
    path = tmp_path / "heads.json"
    path.write_text(json.dumps(held))
    with pytest.raises(ValueError, match=r"path: .*heads\.json"):
        HeadProfile.load(path)
    with pytest.raises(ValueError, match="held: "):
        HeadProfile.from_dict(held)


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        HeadProfile.load(tmp_path / "none.json")
