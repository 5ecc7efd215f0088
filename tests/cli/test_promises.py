"""`attncheck scan --check` through `main`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attncheck.cli import main

HERE = "tests.cli.factories"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_shipped_model_keeps_its_promises(capsys: Capture) -> None:
    assert main(["scan", "--check"]) == 0
    text = capsys.readouterr().out
    assert "no-future-leakage        passed" in text
    assert list(Path().iterdir()) == []


def test_a_broken_promise_is_exit_code_1(capsys: Capture) -> None:
    wrong = ["scan", f"{HERE}:encoder", "--check", "--kind", "decoder"]
    assert main(wrong) == 1
    assert "sees the future" in capsys.readouterr().out
    assert main([*wrong, "--json"]) == 1
    held = json.loads(capsys.readouterr().out)
    assert held["schema"] == "attncheck.check.1"
    statuses = {outcome["id"]: outcome["status"] for outcome in held["outcomes"]}
    assert statuses["no-future-leakage"] == "failed"
    assert statuses["padding-invariant"] == "passed"


def test_nothing_to_try_is_exit_code_2(capsys: Capture) -> None:
    assert main(["scan", f"{HERE}:no_attention", "--check"]) == 2
    assert "inputs: no sequence among them" in capsys.readouterr().err


def test_a_promise_that_was_not_checked_is_said(capsys: Capture) -> None:
    assert main(["scan", f"{HERE}:encoder", "--check"]) == 0
    text = capsys.readouterr().out
    assert "1 not checked" in text.splitlines()[0]
    assert "no-future-leakage was not checked: " in text
    assert main(["scan", f"{HERE}:encoder", "--check", "--kind", "encoder"]) in (0, 1)
    assert "not checked" not in capsys.readouterr().out
