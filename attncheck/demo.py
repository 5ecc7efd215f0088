"""`make demo`: scan the shipped trained model, then run a model author's test suite on it.

One test of that suite is meant to fail, so that a reader sees what a failure looks like. The demo
ends well only if exactly that one fails.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from attncheck import cli
from attncheck.models import fixture_path

__all__ = ["main"]

SUITE: Final = "sample_suite/test_copying_model.py"
MEANT_TO_FAIL: Final = "test_no_head_collapses_onto_one_key"


def main() -> int:
    """Run the demo; returns 0 if everything came out as announced."""
    folder = _checkout_or_here() / "demo-output"
    _announce("1. attncheck scan: what each head of a trained 2-layer transformer does")
    print(f"$ attncheck scan --out {folder}\n", flush=True)
    scanned = cli.main(["scan", "--out", str(folder)])
    if scanned:
        print(f"\ndemo: the scan ended with {scanned}", file=sys.stderr)
        return scanned
    suite = fixture_path(SUITE)
    _announce("2. A test suite for that model, as its author would write it")
    print(f"$ pytest {suite}\n\nOne failure is coming, on purpose: {MEANT_TO_FAIL}\n", flush=True)
    return judge(run_suite(suite))


def run_suite(suite: Path) -> dict[str, bool]:
    """Run the suite in a pytest of its own; returns which tests passed, by name."""
    with tempfile.TemporaryDirectory() as scratch:
        results = Path(scratch) / "results.xml"
        command = [sys.executable, "-P", "-m", "pytest", *_plugin(), f"--rootdir={suite.parent}"]
        command += ["-c", str(suite.parent / "pytest.ini"), "-p", "no:cacheprovider"]
        subprocess.run(
            [*command, f"--junitxml={results}", str(suite)], cwd=suite.parent, check=False
        )
        if not results.exists():
            return {}
        cases = list(ElementTree.parse(results).iter("testcase"))
    return {case.get("name", ""): len(case.findall("*")) == 0 for case in cases}


def judge(passed: Mapping[str, bool]) -> int:
    """Say whether the suite came out as announced; 0 if so, else 1."""
    failed = sorted(name for name, good in passed.items() if not good)
    _announce("3. The verdict")
    as_announced = len(failed) == 1 and failed[0].partition("[")[0] == MEANT_TO_FAIL
    if as_announced and len(passed) > 1:
        print(f"1 failure expected and seen: {failed[0]}")
        print(f"{len(passed) - 1} other tests passed. The demo is well.")
        return 0
    print(f"Not as announced: of {len(passed)} tests failed {', '.join(failed) or 'none'},")
    print(f"and {MEANT_TO_FAIL} was to fail, alone.")
    return 1


def _announce(what: str) -> None:
    print(f"\n{'=' * 80}\n{what}\n{'=' * 80}", flush=True)


def _checkout_or_here() -> Path:
    """The root of a source checkout, else the working directory."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").exists() else Path.cwd()


def _plugin() -> list[str]:
    """Load the plugin by hand where no installation registers it."""
    points = importlib.metadata.entry_points(group="pytest11", name="attncheck")
    return [] if points else ["-p", "attncheck.pytest_plugin"]


if __name__ == "__main__":
    sys.exit(main())
