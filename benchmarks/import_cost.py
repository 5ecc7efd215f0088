"""What the plugin costs a test run that never uses it: an empty ``pytest -q`` with and without.

Both runs are started in turn, round after round, each in a process of its own. The difference of a
round is what the plugin added. The median difference of processor time must stay below the limit:
it is what the plugin costs, while wall time, printed beside it, also counts who else is computing.
Entry points are not looked up: that reads every installed distribution, plugin or not, and starts
other plugins, which takes longer than what is measured.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._measure import interleave, median_ratio, write_results

LIMIT_MS = 20.0
ROOT = Path(__file__).parent.parent


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write; return 1 if the plugin costs more than the limit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.import_cost", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="9 rounds instead of 41")
    rounds = 9 if parser.parse_args(argv).quick else 41
    with_plugin, without = ["-p", "attncheck.pytest_plugin"], ["-p", "no:attncheck"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_empty.py").write_text("def test_empty():\n    pass\n", encoding="utf-8")
        runs = {"with": Run(folder, with_plugin), "without": Run(folder, without)}
        wall = interleave(runs, rounds)
    # `interleave` calls everything once before it times.
    processor = {name: run.seconds[1:] for name, run in runs.items()}
    found = {"processor": _compared(processor), "wall": _compared(wall)}
    for kind, held in found.items():
        print(
            f"{kind:9}  with {held['with_ms']:7.1f} ms  without {held['without_ms']:7.1f} ms  "
            f"added {held['added_ms']:5.1f} ms (quartiles {held['added_quartiles_ms'][0]:.1f} to "
            f"{held['added_quartiles_ms'][1]:.1f})  ratio {held['ratio']:.3f}"
        )
    met = found["processor"]["added_ms"] <= LIMIT_MS
    verdict = "met" if met else "missed"
    print(f"median of {rounds} pairs; limit {LIMIT_MS:g} ms of processor time: {verdict}")
    data = {"rounds": rounds, "limit_ms": LIMIT_MS, "met": met}
    path = write_results("import_cost", {**data, **found})
    print(f"written to {path.relative_to(ROOT)}")
    return 0 if met else 1


class Run:
    """One way of running the one empty test, each call in a fresh process."""

    def __init__(self, folder: str, arguments: list[str]) -> None:
        self.command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        self.folder = folder
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        self.environment = {
            **os.environ,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        self.seconds: list[float] = []

    def __call__(self) -> None:
        before = _processor_seconds()
        subprocess.run(
            self.command, cwd=self.folder, env=self.environment, capture_output=True, check=True
        )
        self.seconds.append(_processor_seconds() - before)


def _processor_seconds() -> float:
    """Processor time of all finished child processes; finer than `os.times` where there is more."""
    try:
        import resource
    except ImportError:
        held = os.times()
        return held.children_user + held.children_system
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _compared(times: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    pairs = zip(times["with"], times["without"], strict=True)
    added = [(a - b) * 1000 for a, b in pairs]
    low, _, high = statistics.quantiles(added, n=4)
    return {
        "with_ms": statistics.median(times["with"]) * 1000,
        "without_ms": statistics.median(times["without"]) * 1000,
        "added_ms": statistics.median(added),
        "added_quartiles_ms": [low, high],
        "ratio": median_ratio(times, "with", "without"),
    }


if __name__ == "__main__":
    sys.exit(main())
