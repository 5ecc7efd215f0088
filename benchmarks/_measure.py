"""What every benchmark shares: the package's measuring, and a JSON file with the machine's facts.

Two functions are compared by running them in turn, round after round, so that a slow moment of a
shared machine hits both; the ratio is taken within a round and its median reported.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from attncheck.benchmark import interleave, median_ratio, peak_memory
from attncheck.benchmark import machine as described_machine

__all__ = [
    "RESULTS",
    "cuda_available",
    "interleave",
    "machine",
    "median_ratio",
    "peak_memory",
    "result_name",
    "write_results",
]

RESULTS: Final = Path(__file__).parent / "results"
"""Where `write_results` puts its files."""


def cuda_available() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


def result_name(name: str, device: str) -> str:
    """Name the results of a device: those of a GPU stand beside those of a CPU.

    Example:
        >>> result_name("extraction", "cpu"), result_name("extraction", "cuda:1")
        ('extraction', 'extraction_cuda')
    """
    kind = device.partition(":")[0]
    return name if kind == "cpu" else f"{name}_{kind}"


def machine() -> dict[str, Any]:
    """Describe the machine, and the commit that was measured."""
    return {**described_machine(), "commit": _commit()}


def write_results(name: str, data: Mapping[str, Any]) -> Path:
    """Write ``data`` and the machine to ``results/<name>.json``; return the path.

    The page of results is written anew with it, so that it cannot fall behind. A run with
    ``--quick`` writes to ``results/quick/`` and leaves the page alone.
    """
    from benchmarks import _page

    quick = "--quick" in sys.argv[1:]
    path = (RESULTS / "quick" if quick else RESULTS) / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), **data}, indent=2, sort_keys=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)
    if not quick:
        _page.write()
    return path


def _commit() -> str | None:
    try:
        ran = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return ran.stdout.strip()
