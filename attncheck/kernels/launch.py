"""How kernels are launched, and which tiles they take by size of the heads and dtype."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["KernelError", "Tiles", "launch", "next_power", "tiles_for"]


class KernelError(RuntimeError):
    """A kernel can't be built for a device, or is too large for it."""


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Launch a kernel.

    Args:
        kernel: What ``triton.jit`` made.
        grid: How many programs run.
        args: Tensors, all on one device, and numbers.
        options: What it is compiled for.

    Raises:
        KernelError: It can't run here.
    """
    device = next(arg.device for arg in args if isinstance(arg, torch.Tensor))
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            kernel[grid](*args, enable_fp_fusion=True, **options)
    except Exception as error:  # of a compiler, an assembler, a linker or a driver
        raise KernelError(_told(error)) from error


def _told(error: BaseException) -> str:
    """Say in a line what went wrong first."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^~")]
    return f"{type(error).__name__}: {lines[-1][:200] if lines else ''}"


@dataclass(frozen=True)
class Tiles:
    """Shape of a tile, and how it is worked on.

    Attributes:
        rows: Queries.
        keys: Keys; a divisor of ``rows``.
        warps: Warps of 32 threads.
        stages: Tiles on their way from memory.
    """

    rows: int
    keys: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, Any]:
        """What a launch is given."""
        return {
            "ROWS": self.rows,
            "KEYS": self.keys,
            "STAGES": self.stages,
            "num_warps": self.warps,
        }


def next_power(size: int) -> int:
    """The power of two that is no less.

    Example:
        >>> next_power(80), next_power(64)
        (128, 64)
    """
    return 1 << max(0, size - 1).bit_length()


def tiles_for(size: int, dtype: torch.dtype) -> list[Tiles]:
    """Choose tiles for heads of some size, the fastest first; the last fit any device."""
    if dtype == torch.float32:
        return [Tiles(32, 32, 8, 2)] if size <= 64 else [Tiles(32, 16, 8, 1)]
    if size <= 128:
        return [Tiles(128, 64, 4 if size <= 64 else 8, 3), Tiles(64, 32, 4, 1)]
    return [Tiles(64, 64, 4, 2), Tiles(32, 32, 4, 1)]
