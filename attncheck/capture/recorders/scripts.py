"""TorchScript: nothing in it can be watched, so it is told whether it attends."""

from __future__ import annotations

from typing import Any

__all__ = ["scripts_attention"]


def scripts_attention(scripted: Any) -> bool:
    """Whether TorchScript computes attention, by its graph.

    Args:
        scripted: A module, a function, or a method.
    """
    graph = str(getattr(scripted, "inlined_graph", None) or scripted.graph)
    if "aten::scaled_dot_product_attention" in graph:
        return True
    return "aten::softmax" in graph and ("aten::matmul" in graph or "aten::bmm" in graph)
