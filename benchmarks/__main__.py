"""Run every benchmark: ``python -m benchmarks [--quick] [NAME ...]``.

The same command serves a CPU and a GPU. Results go to ``benchmarks/results/``, with the hardware
and the versions they were measured on. A benchmark that misses its own limit makes the exit code 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def names() -> list[str]:
    """Name the benchmarks: every public module of this folder."""
    return sorted(path.stem for path in HERE.glob("[!_]*.py"))


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
        command = [sys.executable, "-m", f"benchmarks.{name}", *(["--quick"] * chosen.quick)]
        if subprocess.run(command, cwd=HERE.parent, check=False).returncode:
            failed.append(name)
    print(f"\nfailed: {', '.join(failed)}" if failed else "\nall benchmarks within their limits")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
