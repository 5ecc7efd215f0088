"""Run every benchmark: ``python -m benchmarks [--quick] [NAME ...]``.

The same command serves a CPU and a GPU. Results go to ``benchmarks/results/``, with the hardware
and the versions they were measured on. A benchmark that misses its own limit makes the exit code 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

HERE = Path(__file__).parent
PARTS: Final = {"profile_without_matrix": ("layer", "model")}
"""Benchmarks that run once for each of some words."""

STOPPED: Final = 130
"""Exit code of a benchmark that Ctrl-C ended after it kept what was done."""

NEEDS: Final = {"capture_sweep": "transformers", "model_checks": "transformers"}
"""What a benchmark is about, where that may be missing."""


def names() -> list[str]:
    """Name the benchmarks: every public module of this folder."""
    return sorted(path.stem for path in HERE.glob("[!_]*.py"))


def commands(name: str, *, quick: bool = False) -> list[list[str]]:
    """What runs a benchmark; each command can be given alone."""
    start = [sys.executable, "-m", f"benchmarks.{name}"]
    return [[*start, *part, *(["--quick"] * quick)] for part in parts_of(name)]


def parts_of(name: str) -> list[list[str]]:
    return [[part] for part in PARTS.get(name, ())] or [[]]


def main(argv: list[str] | None = None) -> int:
    """Run the chosen benchmarks, each in a process of its own; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="*", metavar="NAME", help=f"of {', '.join(names())}")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    chosen = parser.parse_args(argv)
    unknown = sorted(set(chosen.name) - set(names()))
    if unknown:
        parser.error(f"no benchmark named {', '.join(unknown)}; there are {', '.join(names())}")
    failed = []
    for name in chosen.name or names():
        print(f"\n=== {name} ===", flush=True)
        needed = NEEDS.get(name)
        if needed is not None and find_spec(needed) is None:
            print(f"left out: {needed} is not installed")
            continue
        for command in commands(name, quick=chosen.quick):
            ended = subprocess.run(command, cwd=HERE.parent, check=False).returncode
            if ended == STOPPED:
                return ended
            if ended and name not in failed:
                failed.append(name)
    print(f"\nfailed: {', '.join(failed)}" if failed else "\nall benchmarks within their limits")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
