"""TorchScript: nothing in it can be watched, so it is told whether it attends."""

from __future__ import annotations

import weakref
from typing import Any, Final

__all__ = ["scripts_attention"]

PRODUCTS: Final = frozenset(
    {"aten::matmul", "aten::bmm", "aten::baddbmm", "aten::mm", "aten::einsum", "aten::addmm"}
    | {"aten::__matmul__", "aten::tensordot", "aten::linear"}
)
SOFTMAXES: Final = frozenset({"aten::softmax", "aten::_softmax", "aten::special_softmax"})

_KNOWN: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
"""What was found of functions, which are called often."""


def scripts_attention(scripted: Any) -> bool:
    """Whether TorchScript computes attention: a softmax between two products, by its graph.

    Args:
        scripted: A module, a function, or a method.
    """
    try:
        if scripted not in _KNOWN:
            _KNOWN[scripted] = _attends(scripted.inlined_graph)
        return _KNOWN[scripted]
    except TypeError:  # it cannot be kept
        return _attends(scripted.inlined_graph)


def _attends(graph: Any) -> bool:
    order = _kinds(graph)
    if any(SDPA in kind for kind in order):
        return True
    places = [place for place, kind in enumerate(order) if kind in SOFTMAXES]
    return any(
        any(kind in PRODUCTS for kind in order[:place])
        and any(kind in PRODUCTS for kind in order[place + 1 :])
        for place in places
    )


SDPA: Final = "scaled_dot_product_attention"


def _kinds(block: Any) -> list[str]:
    """Kinds of all nodes in order, also those in branches and loops."""
    found: list[str] = []
    for node in block.nodes():
        found.append(node.kind())
        for inner in node.blocks():
            found += _kinds(inner)
    return found
