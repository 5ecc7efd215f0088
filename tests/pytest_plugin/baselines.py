"""A test of some patterns' heads, run in a nested pytest, and the baselines that it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pytest_plugin.conftest import Run

SAMPLE = """
from pathlib import Path
import pytest, torch
from attncheck import create_synthetic_attention

PATTERNS = Path("patterns.txt").read_text().split()

@pytest.fixture
def maps():
    heads = [create_synthetic_attention(16, name, causal=True, seed=0) for name in PATTERNS]
    return torch.stack(heads)[None]

def test_heads(maps, head_regression):
    head_regression.check(maps)
"""


def files_below(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    shown = sorted(path.relative_to(folder).as_posix() for path in paths)
    return [path for path in shown if "__heads__" in path]


def set_patterns(pytester: pytest.Pytester, *names: str) -> None:
    (pytester.path / "patterns.txt").write_text(" ".join(names), encoding="utf-8")


def record(run: Run, pytester: pytest.Pytester, *names: str) -> Path:
    set_patterns(pytester, *names)
    run(SAMPLE, "--attncheck-update").assert_outcomes(passed=1)
    return pytester.path / "__heads__/test_it/test_heads.json"
