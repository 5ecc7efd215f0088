"""The demo ends well only if exactly the announced test fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from attncheck.demo import MEANT_TO_FAIL, judge

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("passed", "code"),
    [
        ({f"{MEANT_TO_FAIL}[12]": False, "test_a": True}, 0),
        ({MEANT_TO_FAIL: True, "test_a": True}, 1),
        ({MEANT_TO_FAIL: False, "test_a": False}, 1),
        ({MEANT_TO_FAIL: True, "test_a": False}, 1),
        ({MEANT_TO_FAIL: False}, 1),
        ({}, 1),
    ],
)
def test_verdict(passed: dict[str, bool], code: int) -> None:
    assert judge(passed) == code


def test_demo_runs_from_any_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "attncheck.demo"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    before, _, after = done.stdout.partition("test session starts")
    assert f"One failure is coming, on purpose: {MEANT_TO_FAIL}" in before
    assert f"1 failure expected and seen: {MEANT_TO_FAIL}[12]" in after
    assert "CheckFailure: entropy outside bounds" in after
    assert "2 induction" in before
    assert (ROOT / "demo-output" / "head_map.png").exists()
