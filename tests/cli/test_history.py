"""`attncheck compare heads.jsonl`: what a monitor wrote, as text, JSON, picture and page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.image import imread

from attncheck import HeadMonitor
from attncheck.cli import main
from attncheck.models import TinyTransformer
from tests.monitor.training import head_rows, train

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def ill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which a head dies and another blows up."""
    path = tmp_path_factory.mktemp("run") / "heads.jsonl"

    def harm(model: TinyTransformer, step: int) -> None:
        if step >= 15:
            head_rows(model, 0, 1, 2).zero_()
        if step == 35:
            head_rows(model, 1, 0, 0).mul_(60)
            head_rows(model, 1, 0, 1).mul_(60)

    train(steps=61, fault=harm, watch=lambda m: HeadMonitor(m, 10, path=path, on_alert="ignore"))
    return path


def test_text_says_alerts_first(ill: Path, capsys: Capture) -> None:
    assert main(["compare", str(ill)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("7 samples, step 0 to 60, ")
    assert "step 30, L0H1: dead: passes on 0" in out
    assert "step 40, L1H0: entropy collapse: normalised entropy" in out
    assert max(map(len, out.splitlines())) <= 80


def test_json_holds_every_number(ill: Path, capsys: Capture) -> None:
    assert main(["compare", str(ill), "--json"]) == 0
    held = json.loads(capsys.readouterr().out)
    assert held["schema"] == "attncheck.trajectory.1"
    assert held["steps"] == [0, 10, 20, 30, 40, 50, 60]
    third = held["heads"][2]
    assert third["head"] == "L1H0"
    assert third["measures"]["max_logit"][3] < 100 < third["measures"]["max_logit"][4]
    assert {"dead", "entropy_collapse", "max_logit"} <= {one["kind"] for one in held["alerts"]}


def test_picture_and_page(ill: Path, tmp_path: Path, capsys: Capture) -> None:
    picture, page = tmp_path / "run.png", tmp_path / "run.html"
    assert main(["compare", str(ill), "--plot", str(picture), "--report", str(page)]) == 0
    assert f"written\n  {picture}\n  {page}" in capsys.readouterr().out
    assert imread(picture).shape[0] > 600
    text = page.read_text()
    assert "L0H1: dead: passes on" in text
    assert "heads in training" in text
    assert 'id="timeline"' in text


def test_what_is_no_history_is_one_clear_line(tmp_path: Path, ill: Path, capsys: Capture) -> None:
    other = tmp_path / "notes.jsonl"
    other.write_text('{"a": 1}\n')
    assert main(["compare", str(other)]) == 2
    assert "is no history of a HeadMonitor" in capsys.readouterr().err
    assert main(["compare", str(ill), "--plot", str(tmp_path / "run.xyz")]) == 2
    assert "error: --plot: no format 'xyz'; known are " in capsys.readouterr().err
    assert main(["compare", str(ill), str(other)]) == 2
    assert "a history is shown alone" in capsys.readouterr().err
    other.write_text(ill.read_text().splitlines()[0] + "\n")
    assert main(["compare", str(other)]) == 2
    assert "holds no sample yet" in capsys.readouterr().err


def test_text_of_a_file_is_data_not_markup(ill: Path, tmp_path: Path) -> None:
    evil = tmp_path / "evil.jsonl"
    text = ill.read_text().replace("L1H1", "<script>alert(1)</script>")
    evil.write_text(text.replace('"uniform"', '"<b>"').replace("TinyTransformer", "<img src=x>"))
    page = tmp_path / "evil.html"
    assert main(["compare", str(evil), "--report", str(page)]) == 0
    assert page.read_text().count("<script>") == 1
    assert "<img src=x>" not in page.read_text()
