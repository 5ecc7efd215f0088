"""What every benchmark shares: interleaved timing, a ratio, the machine, a JSON file.

Two functions are compared by running them in turn, round after round, so that a slow moment of a
shared machine hits both; the ratio is taken within a round and its median reported.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

__all__ = [
    "RESULTS",
    "cuda_available",
    "interleave",
    "machine",
    "median_ratio",
    "peak_memory",
    "write_results",
]

RESULTS: Final = Path(__file__).parent / "results"
"""Where `write_results` puts its files."""

PACKAGES: Final = ("torch", "numpy", "scipy", "pytest", "hypothesis", "transformers")
"""Whose versions a result names."""


def interleave(
    functions: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu"
) -> dict[str, list[float]]:
    """Time functions in turn, in a new random order every round, after one untimed round.

    Args:
        functions: What to time, by name.
        rounds: How often each is timed.
        device: ``"cuda"`` waits for the device before and after each call.

    Returns:
        Seconds of each call, in round order: index ``k`` of every list is the same round.
    """
    synchronise = _synchroniser(device)
    for function in functions.values():
        function()
    order = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name in order.sample(list(functions), len(functions)):
            synchronise()
            start = time.perf_counter()
            functions[name]()
            synchronise()
            times[name].append(time.perf_counter() - start)
    return times


def median_ratio(times: Mapping[str, Sequence[float]], a: str, b: str) -> float:
    """Median over rounds of the time of ``a`` divided by the time of ``b`` in the same round."""
    return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))


def peak_memory(function: Callable[[], object], device: str = "cpu") -> int:
    """Return the bytes that one untimed call allocates at its peak, beyond what was held before.

    On a CPU, where torch keeps no such count, this is 0: measure the process from outside.
    """
    if not device.startswith("cuda"):
        return 0
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)


def cuda_available() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


def machine() -> dict[str, Any]:
    """Describe hardware, versions, load and commit: what a number is worthless without."""
    described: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "commit": _commit(),
    }
    if _version("torch"):
        import torch

        described["torch_threads"] = torch.get_num_threads()
        described["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return described


def write_results(name: str, data: Mapping[str, Any]) -> Path:
    """Write ``data`` and the machine to ``results/<name>.json``; return the path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    text = json.dumps({"machine": machine(), **data}, indent=2, sort_keys=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def _synchroniser(device: str) -> Callable[[], None]:
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    return torch.cuda.synchronize


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


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
