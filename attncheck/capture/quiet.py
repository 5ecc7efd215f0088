"""When a capture computes: unseen by the model, and not while autograd repeats it."""

from __future__ import annotations

import torch

from attncheck.attention.quiet import quiet

__all__ = ["in_backward", "quiet"]


def in_backward() -> bool:
    """Whether autograd is running: gradient checkpointing then repeats forward calls."""
    return bool(torch._C._current_graph_task_id() != -1)
