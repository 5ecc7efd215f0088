"""What the machine can do at best, measured here and now: the scale that a speed is read on."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from attncheck.benchmark.timing import interleave

__all__ = ["Ceilings", "measure_ceilings"]

ROUNDS = 5


@dataclass(frozen=True)
class Ceilings:
    """The best rates of a device.

    Attributes:
        read: Bytes per second that summing a tensor too large for the caches reads.
        copy: Bytes per second that copying it reads and writes, both counted.
        flops: Floating-point operations per second of a large square matrix product.
    """

    read: float
    copy: float
    flops: float

    @property
    def bandwidth(self) -> float:
        """The higher of the two rates of memory."""
        return max(self.read, self.copy)


def measure_ceilings(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    size: int | None = None,
    width: int | None = None,
) -> Ceilings:
    """Measure the memory bandwidth and the matrix speed of a device, medians of 5 rounds.

    Args:
        device: Where.
        dtype: Of the matrix product.
        size: Bytes of the tensor that is summed and copied. Default: 128 MiB, on an accelerator
            1 GiB.
        width: Rows and columns of the matrices. Default: 1024, on an accelerator 8192.

    Example:
        >>> found = measure_ceilings(size=1 << 16, width=32)
        >>> found.bandwidth > 0 and found.flops > 0
        True
    """
    chosen = torch.device(device)
    small = chosen.type == "cpu"
    size = size or (128 << 20 if small else 1 << 30)
    width = width or (1024 if small else 8192)
    source = torch.ones(size // 4, device=chosen)
    target = torch.empty_like(source)
    one = torch.ones(width, width, device=chosen, dtype=dtype)
    product = torch.empty_like(one)

    functions: dict[str, Callable[[], object]] = {
        "read": source.sum,
        "copy": lambda: target.copy_(source),
        "product": lambda: torch.mm(one, one, out=product),
    }
    times = interleave(functions, ROUNDS, chosen)
    seconds = {name: statistics.median(each) for name, each in times.items()}
    held = source.numel() * source.element_size()
    return Ceilings(
        read=held / seconds["read"],
        copy=2 * held / seconds["copy"],
        flops=2 * width**3 / seconds["product"],
    )
