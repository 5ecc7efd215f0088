"""When a capture computes: unseen by the model, and not while autograd repeats it."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from attncheck.attention.quiet import quiet

__all__ = ["in_backward", "quiet", "undrawn"]


def in_backward() -> bool:
    """Whether autograd is running: gradient checkpointing then repeats forward calls."""
    return bool(torch._C._current_graph_task_id() != -1)


def undrawn(device: torch.device) -> AbstractContextManager[None]:
    """Put back the random numbers drawn inside, of the CPU and of a device.

    Args:
        device: Where the computation runs.
    """
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
