"""The file: reviewable, exact to six digits, and never taken for what it is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from attncheck import BaselineError, profile_attention
from attncheck.regression import Baseline, HeadRecord, judge, records_of
from attncheck.regression.baseline import WeightsFile
from attncheck.regression.capture import open_capture
from attncheck.regression.environment import Environment
from attncheck.regression.variants import read_baseline
from tests.checks.samples import causal_weights

HERE = Environment("cpu", "float32", (("torch", "2.13.0"),))


def made(heads: int = 12, layers: int = 2) -> Baseline:
    maps = [causal_weights(heads=heads, n=12, seed=seed) for seed in range(layers)]
    return Baseline("test_a.py::test_x", HERE, records_of([profile_attention(maps)]), input="ab")


def test_one_head_a_line_in_order() -> None:
    lines = made().to_text().splitlines()
    heads = [line.partition('"')[2].partition('"')[0] for line in lines if line.startswith('"L')]
    assert heads == [f"L{layer}H{head}" for layer in range(2) for head in range(12)]
    head = next(line for line in lines if line.startswith('"L1H3"'))
    keys = list(json.loads("{" + head.rstrip(",") + "}")["L1H3"])
    assert keys == sorted(keys)
    fields = [
        line.partition('"')[2].partition('"')[0] for line in lines if not line.startswith('"L')
    ]
    names = [name for name in fields if name]
    assert names == sorted(names)


def test_a_head_that_changes_is_one_line_of_a_diff() -> None:
    before = [causal_weights(heads=4, n=12)]
    after = [before[0].clone()]
    after[0][:, 2] = torch.eye(12)
    texts = [
        Baseline("t", HERE, records_of([profile_attention(maps)])).to_text().splitlines()
        for maps in (before, after)
    ]
    differing = [(a, b) for a, b in zip(*texts, strict=True) if a != b]
    assert len(differing) == 1
    assert differing[0][0].startswith('"L0H2"')


def test_what_is_written_is_read() -> None:
    baseline = made()
    again = Baseline.from_text(baseline.to_text())
    assert again.to_text() == baseline.to_text()
    assert again.names == baseline.names
    assert judge(again.heads, baseline.heads).verdict == "same"
    held = Baseline("t", HERE, baseline.heads[:1], 5, None, WeightsFile("a.safetensors", "00"))
    assert Baseline.from_text(held.to_text()).weights == held.weights


def test_spread_and_later_calls_are_kept() -> None:
    head = HeadRecord("L0H0 call 1", "uniform", {"entropy": 1.5}, {"by_key": {-2: 0.5}}, {"x": 0.1})
    baseline = Baseline("t", HERE, (head,), runs=3)
    assert Baseline.from_text(baseline.to_text()) == baseline


def test_every_truncation_is_noticed() -> None:
    text = made(heads=2, layers=1).to_text()
    for length in range(len(text) - 2):
        with pytest.raises(BaselineError):
            Baseline.from_text(text[:length])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not readable JSON, cut short or damaged"),
        ("[]", "no baseline of attncheck"),
        ('{"schema": 1}', "no baseline of attncheck"),
        ('{"schema": "attncheck.profile.1"}', "no baseline of attncheck"),
        ('{"name": "package", "dependencies": {}}', "no baseline of attncheck"),
        ('{"schema": "attncheck.heads.2"}', "has schema attncheck.heads.2, this version reads"),
        ('{"schema": "attncheck.heads.1"}', "is a damaged baseline"),
        ('{"schema": "attncheck.heads.1", "x": NaN}', "NaN is no JSON number"),
        ("[" * 100_000, "not readable JSON"),
    ],
)
def test_what_is_no_baseline_is_refused(text: str, message: str) -> None:
    with pytest.raises(BaselineError, match=message):
        Baseline.from_text(text)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"L0H0":', '"the head":'),
        ('"entropy": 1', '"entropy": "1'),
        ('"label": "', '"label": 7, "x": "'),
        ('"runs": 1', '"runs": null'),
        ('"device": "cpu"', '"device": 0'),
    ],
)
def test_damaged_fields_are_refused(old: str, new: str) -> None:
    text = made(heads=1, layers=1).to_text()
    assert old in text
    with pytest.raises(BaselineError):
        Baseline.from_text(text.replace(old, new, 1))


def test_a_merge_conflict_is_named() -> None:
    lines = made(heads=2, layers=1).to_text().splitlines()
    lines[4:4] = ["<<<<<<< HEAD", lines[3], "=======", lines[3], ">>>>>>> other"]
    with pytest.raises(BaselineError, match="conflict markers"):
        Baseline.from_text("\n".join(lines))


def test_errors_name_the_file_and_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "test_x.json"
    path.write_bytes(b"\x80\x04\x95pickle")
    with pytest.raises(BaselineError, match=r"test_x\.json cannot be read"):
        read_baseline(path)
    path.write_text("{")
    with pytest.raises(BaselineError, match="never overwritten: restore it from version control"):
        read_baseline(path)


def test_nothing_that_json_cannot_say_is_written() -> None:
    head = HeadRecord("L0H0", "uniform", {"entropy": float("nan")}, {})
    with pytest.raises(ValueError, match="nan is no number"):
        Baseline("t", HERE, (head,)).to_text()


@pytest.mark.parametrize("device", ["gpu0", -3, 1.5])
def test_a_device_that_is_none_is_named(device: Any) -> None:
    with pytest.raises(ValueError, match=rf"^device: {device!r} is no device .*; expected what"):
        open_capture(causal_weights(heads=2, n=6, seed=0), device=device)
