"""Attention over the edges of a graph: found, so that it is told, and not captured.

Query and key of each edge are picked out of those of all nodes, so that scores have one axis, of
edges, and a softmax over the edges of a node is spelled out: raised, summed by node, and divided.
There is no row of weights over keys. Pooling over the nodes of a graph spells its softmax alike,
but its scores are of nodes, not of pairs; a kernel of distances is raised, but not divided by sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from attncheck.capture.call import Sink
from attncheck.capture.follow.noted import Noted
from attncheck.capture.follow.steps import LAYERS, TIMES, Step
from attncheck.capture.follow.traces import Trace, Traces

__all__ = ["BY_INDEX", "Edges"]

BY_INDEX: Final = ("index_select", "__getitem__", "gather", "take_along_dim")
"""Functions that pick entries by their numbers."""

SCATTERS: Final = frozenset(
    {"index_add", "index_add_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_"}
    | {"index_reduce", "index_reduce_", "index_put", "index_put_", "segment_reduce", "bincount"}
)
"""Functions that sum the entries that belong to a node."""


class Edges:
    """Follows what is computed of query and key of each edge.

    Args:
        sink: Where to tell.
        traces: Of the tensors that are followed.
    """

    def __init__(self, sink: Sink, traces: Traces) -> None:
        self._sink, self._traces = sink, traces
        self._picked: Noted[bool] = Noted()
        self._divided: set[int] = set()
        """Numbers of the products whose raised scores were summed by node."""
        self._weighted: set[int] = set()
        """Numbers of those of which products with values were."""

    def __bool__(self) -> bool:
        return bool(self._picked)

    def pick(self, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """Note what a function of `BY_INDEX` picked.

        Args:
            args: That it got.
            kwargs: That it got.
            out: What it returned.
        """
        if not isinstance(out, Tensor) or not out.is_floating_point() or not args:
            return
        held = (*args[1:], *kwargs.values())
        index = [i for arg in held for i in (arg if isinstance(arg, tuple | list) else (arg,))]
        if any(isinstance(i, Tensor) and i.dtype in (torch.int64, torch.int32) for i in index):
            self._picked[out] = True

    def pairs(self, tensors: Sequence[Any]) -> bool:
        """Whether tensors that are combined hold a query and a key of each edge."""
        found = [t for t in tensors if isinstance(t, Tensor) and self._picked.get(t)]
        return len(found) > 1 and found[0].shape[0] == found[1].shape[0]

    def after(self, step: Step) -> None:
        """Follow scores of edges through a function."""
        trace, target = step.trace, step.target()
        if step.name in SCATTERS:
            self._summed(trace)
        elif target is None or step.ends():
            return
        elif step.raises():
            self._traces[target] = trace.but(stage="raised")
        elif trace.stage == "raised" and step.name in TIMES:
            self.multiplied(step.source, trace, target)
        elif trace.stage in ("pairs", "scores") or step.name not in LAYERS:
            self._traces[target] = trace

    def multiplied(self, source: Tensor, trace: Trace, out: Tensor) -> None:
        """Follow a product with something else: of raised scores with values, if it is wider."""
        values = trace.stage == "raised" and out.numel() > source.numel()
        self._traces[out] = trace.but(stage="weighted") if values else trace

    def _summed(self, trace: Trace) -> None:
        number = trace.product
        if trace.stage == "raised":
            self._divided.add(number)
        elif trace.stage == "weighted":
            self._weighted.add(number)
        if number in self._divided and number in self._weighted:
            self._sink.values_met(number)
