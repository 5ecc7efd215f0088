"""What a capture will hold, against the memory that there is: refused before it is allocated."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from attncheck.errors import CaptureError

__all__ = ["Budget", "Estimate", "checked_limit", "free_memory"]

SHARE: Final = 0.8
"""Share of the free memory that a capture may take by default."""

SMALL: Final = 32 << 20
"""Bytes that are never refused by a share of free memory, and for which it is not looked up."""

CGROUP: Final = Path("/sys/fs/cgroup")


def checked_limit(limit: float | None) -> float | None:
    """Return the limit.

    Raises:
        TypeError: It is no number.
        ValueError: It is neither a share from 0 to 1 nor a positive number of bytes.
    """
    expected = "expected a share of free memory (a float from 0 to 1), bytes (an int), or None"
    if isinstance(limit, bool) or not isinstance(limit, int | float | None):
        raise TypeError(f"memory_limit: got {type(limit).__name__}; {expected}")
    if limit is not None and not (0 < limit <= 1 if isinstance(limit, float) else limit > 0):
        raise ValueError(f"memory_limit: got {limit}; {expected}")
    return limit


@dataclass(frozen=True)
class Estimate:
    """What a layer will take, and those that are still to come.

    Attributes:
        name: Module path of the layer.
        shape: ``(batch, head, query, key)`` of what is held of it.
        dtype: Of its weights.
        layer: Bytes that are held of it.
        scratch: Bytes that making it takes for a while.
        to_come: Layers like it that are still expected in this call of the model.
        what: Name of what is held.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    layer: int
    scratch: int
    to_come: int
    what: str = "weights"


class Budget:
    """Adds up what is held, and refuses what would not fit.

    Args:
        limit: A share of the free memory (float), bytes (int), or None: nothing is refused.
    """

    def __init__(self, limit: float | None = SHARE) -> None:
        self._limit = limit
        self._held = 0
        self._layers = 0
        self._free: int | None = None

    def admit(self, estimate: Estimate, device: torch.device) -> None:
        """Count a layer that is about to be kept.

        Args:
            estimate: The layer.
            device: Where it will be held.

        Raises:
            CaptureError: It and those to come would not fit; nothing was allocated.
        """
        total = self._held + estimate.layer * (1 + estimate.to_come) + estimate.scratch
        allowed = self._allowed(total, device)
        if allowed is not None and total > allowed:
            raise CaptureError(self._refusal(estimate, total, allowed, device))
        self._held += estimate.layer
        self._layers += 1

    def _allowed(self, total: int, device: torch.device) -> float | None:
        if self._limit is None or isinstance(self._limit, int):
            return self._limit
        if total <= SMALL:
            return None
        if self._free is None:
            # What was held by then is part of the total: it counts as free.
            free = free_memory(device)
            self._free = None if free is None else free + self._held
        return None if self._free is None else self._limit * self._free

    def _refusal(self, estimate: Estimate, total: int, allowed: float, device: torch.device) -> str:
        count = self._layers + 1 + estimate.to_come
        axes = " x ".join(map(str, estimate.shape))
        dtype = str(estimate.dtype).removeprefix("torch.")
        held = f"{count} {'layer' if count == 1 else 'layers'} of {axes} {dtype} {estimate.what}"
        if self._free is None:
            room = f"memory_limit allows {_readable(allowed)}"
        else:
            share = f"{self._limit:.0%}"
            room = f"{_readable(self._free)} are free, of which memory_limit allows {share}"
        return (
            f"memory: capturing needs about {_readable(total)} on {device}, {held} (batch x head x "
            f"query x key), and {room}. Refused at {estimate.name}, before allocating. Ways out: "
            "profile_model or store='profile' (one layer at a time), store='qk' (query and key "
            "only), queries=, heads= or layers= (fewer of them), dtype=torch.float16, or a larger "
            "memory_limit"
        )


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that can still be allocated on a device; None where that is not known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + unused)
    if device.type != "cpu":
        return None
    found = [free for free in (_of_machine(), _of_container(CGROUP)) if free is not None]
    return min(found, default=None)


def _of_machine() -> int | None:
    """Memory that the system can give without swapping; its file cache counts as free."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _of_container(folder: Path) -> int | None:
    """What the process's control group may still take; None without a limit."""
    try:
        most = int((folder / "memory.max").read_text(encoding="ascii"))
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):  # no such group, or "max": no limit
        return None
    cached = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    return max(most - used + cached, 0)


def _readable(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
