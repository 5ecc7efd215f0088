"""The memory that a call takes, in an untimed call of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.profiler import profile

__all__ = ["peak_memory"]


def peak_memory(function: Callable[[], object], device: str | torch.device = "cpu") -> int | None:
    """Return the bytes that one untimed call allocates at its peak, beyond what was held before.

    On CUDA and XPU they are the allocator's own count. On a CPU torch's profiler reports every
    allocation and release, which are added up in order; scratch that a BLAS library takes past
    torch is not seen. Call the function once before, so that what it keeps is not counted.

    Args:
        function: What to call.
        device: Where its memory is counted.

    Returns:
        Bytes; None on a device that keeps no such count (MPS).

    Example:
        >>> x = torch.zeros(1000)
        >>> peak_memory(lambda: (x + 1) * 2)  # two results of 4000 bytes at once, and a scalar
        8...
    """
    chosen = torch.device(device)
    if chosen.type == "cpu":
        return _on_cpu(function)
    if chosen.type not in ("cuda", "xpu"):
        return None
    module = getattr(torch, chosen.type)
    module.synchronize(chosen)
    module.reset_peak_memory_stats(chosen)
    before = module.memory_allocated(chosen)
    result = function()
    module.synchronize(chosen)
    peak = int(module.max_memory_allocated(chosen) - before)
    del result
    return peak


def _on_cpu(function: Callable[[], object]) -> int:
    # `torch.profiler.profile`, which holds this one, warns of cycles in torch 2.10 and 2.11.
    watched: Any = profile(use_kineto=True, profile_memory=True)
    with _quiet_stderr(), watched:
        result = function()
    del result
    events = watched.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Keep what the profiler's library has to say off the error stream."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # there is no error stream
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
