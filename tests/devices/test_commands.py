"""`attncheck scan`, `compare` and `bench` with ``--device``, on the shipped model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from attncheck.cli import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def answer(capsys: Capture, *arguments: str) -> dict[str, Any]:
    assert main([arguments[0], "--json", *arguments[1:]]) == 0
    held: dict[str, Any] = json.loads(capsys.readouterr().out)
    return held


def test_scan(capsys: Capture, attention_device: torch.device) -> None:
    found = answer(capsys, "scan", "--device", attention_device.type)
    expected = answer(capsys, "scan")
    assert len(found["heads"]) == 4
    for ours, theirs in zip(found["heads"], expected["heads"], strict=True):
        assert (ours["head"], ours["pattern"]) == (theirs["head"], theirs["pattern"])
        assert ours["mass"] == pytest.approx(theirs["mass"], abs=1e-5)
        for measure, value in theirs["measures"].items():
            assert ours["measures"][measure] == pytest.approx(value, rel=1e-4, abs=1e-4), measure
    assert found["findings"] == []


def encoder() -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return encoder, torch.randn(2, 10, 8)


def test_scan_moves_the_inputs_of_a_factory(
    capsys: Capture, attention_device: torch.device
) -> None:
    found = answer(capsys, "scan", f"{__name__}:encoder", "--device", attention_device.type)
    assert len(found["heads"]) == 4


def test_bench(capsys: Capture, attention_device: torch.device) -> None:
    found = answer(capsys, "bench", "--quick", "--device", attention_device.type)
    assert found["left_out"] == []
    assert {cost["way"] for cost in found["costs"]} == {"plain forward", "capture", "profile"}
    assert all(cost["seconds"] > 0 and cost["peak_bytes"] > 0 for cost in found["costs"])
    assert found["ceilings"]["flops"] > 0
