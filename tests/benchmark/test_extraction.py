"""The sweep of extraction: written after each length, resumed, pieces put together."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from attncheck.benchmark import PLAIN, Cost, CostTable, LeftOut
from benchmarks import _measure, _page, extraction


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (_measure, extraction):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(extraction, "PICTURES", tmp_path)
    monkeypatch.setattr(_page, "write", lambda: None)
    for name, size in (("LAYERS", 1), ("HEADS", 2), ("WIDTH", 16), ("VOCABULARY", 20)):
        monkeypatch.setattr(extraction, name, size)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    common = ["extraction", "--device", "cpu", "--models", "gpt2", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", [*common, *arguments])
    extraction.main()


def test_it_is_written_after_each_length_and_resumed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held = []
    write = extraction.write_results

    def seen(name: str, data: dict) -> Path:
        path = write(name, data)
        held.append(json.loads(path.read_text(encoding="utf-8")))
        return path

    monkeypatch.setattr(extraction, "write_results", seen)
    run(monkeypatch, "--lengths", "16", "8")
    lengths = [sorted({row["length"] for row in data["models"]["gpt2"]}) for data in held]
    assert lengths == [[8], [8, 16]]
    assert {row["way"] for row in held[-1]["models"]["gpt2"]} >= {PLAIN, "capture", "profile"}
    assert (folder / "extraction_gpt2.png").read_bytes().startswith(b"\x89PNG")

    run(monkeypatch, "--lengths", "8", "16", "--resume")
    assert len(held) == 2
    assert "gpt2: every length is measured" in capsys.readouterr().out
    run(monkeypatch, "--lengths", "8", "24", "--resume")
    lengths = [sorted(map(int, data["runs"]["gpt2"])) for data in held[2:]]
    assert lengths == [[8, 16, 24]]


def test_what_is_known_foretells_what_does_not_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, "--lengths", "16")
    monkeypatch.setattr(extraction, "free_memory", lambda device: 1)
    run(monkeypatch, "--lengths", "32", "--resume")
    data = json.loads((folder / "extraction.json").read_text(encoding="utf-8"))
    found = {row["way"] for row in data["models"]["gpt2"] if row["length"] == 32}
    assert found == {PLAIN, "profile"}
    assert {row["way"] for row in data["left_out"]["gpt2"]} >= {"capture", "profile of maps"}
    assert set(data["runs"]["gpt2"]) == {"16", "32"}

    monkeypatch.setattr(extraction, "FIRST", 8)
    (folder / "extraction.json").unlink()
    run(monkeypatch, "--lengths", "24")
    data = json.loads((folder / "extraction.json").read_text(encoding="utf-8"))
    assert {row["length"] for row in data["models"]["gpt2"] if row["way"] == "capture"} == {8}


def test_pieces_replace_what_they_measure_anew() -> None:
    def table(length: int, seconds: float, *left: LeftOut) -> CostTable:
        costs = [Cost(PLAIN, length, seconds, 1.0, 1)]
        return CostTable("it", "cpu", 5, costs, list(left))

    out = LeftOut("maps", 8, "needs more")
    held = extraction.merged({}, "gpt2", table(8, 1.0, out), {8}, "first")
    held = extraction.merged(held, "gpt2", table(4, 2.0), {4}, "second")
    assert [row["length"] for row in held["models"]["gpt2"]] == [4, 8]
    assert held["runs"]["gpt2"] == {"4": "second", "8": "first"}
    assert held["left_out"]["gpt2"] == [vars(out)]
    held = extraction.merged(held, "gpt2", table(8, 3.0), {8}, "third")
    assert [row["seconds"] for row in held["models"]["gpt2"]] == [2.0, 3.0]
    assert held["left_out"]["gpt2"] == []
