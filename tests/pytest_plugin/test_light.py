"""Nothing heavy is imported until a test asks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "numpy",
    "matplotlib",
    "hypothesis",
    "scipy",
    "attncheck.checks",
    "attncheck.regression",
)

REPORT = f"""
import sys

def pytest_unconfigure():
    print("loaded:", [name for name in {HEAVY!r} if name in sys.modules])
"""


def modules_after(folder: Path, test: str, *args: str) -> str:
    """Run one test in a process of its own; return the line that names what was loaded."""
    (folder / "conftest.py").write_text(REPORT, encoding="utf-8")
    (folder / "test_one.py").write_text(test, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "attncheck.pytest_plugin", *args],
        cwd=folder,
        env={
            **os.environ,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
        capture_output=True,
        text=True,
    )
    return next(line for line in ran.stdout.splitlines() if line.startswith("loaded:"))


@pytest.mark.parametrize(
    "args", [(), ("--attncheck-artifacts=here", "--attncheck-device=auto", "--attncheck-update")]
)
def test_a_run_that_uses_nothing_loads_nothing(tmp_path: Path, args: tuple[str, ...]) -> None:
    test = "def test_fails():\n    assert 1 == 2\n\ndef test_passes():\n    pass\n"
    assert modules_after(tmp_path, test, *args) == "loaded: []"


def test_a_run_that_uses_a_fixture_loads_what_it_needs(tmp_path: Path) -> None:
    test = "def test_it(attention_device):\n    assert attention_device.type == 'cpu'\n"
    loaded = modules_after(tmp_path, test)
    assert "'torch'" in loaded
    assert "matplotlib" not in loaded
    assert "hypothesis" not in loaded
