"""`attention_flow`: how much attention the layers could carry from one position to another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attncheck.attention import AttentionLike
from attncheck.attention.arguments import whole_numbers
from attncheck.metrics.rollout import HeadFusion, mixed_layers

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["attention_flow"]

SCALE: Final = 2**30
"""Capacities are integers to scipy; a row's edges together stay below the int32 limit."""


def attention_flow(
    attention: AttentionLike,
    *,
    queries: Iterable[int] | None = None,
    residual: float = 0.5,
    head_fusion: HeadFusion = "mean",
    mask: Any = None,
    causal: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Compute the maximum flow from each position after the last layer to each input position.

    Abnar & Zuidema 2020, sec. 3: the layers form a graph with an edge from every position to
    every position one layer down, whose capacity is the mixed attention ``0.5 W + 0.5 I`` of
    `attention_rollout`; the flow from ``i`` to ``j`` is the maximum flow between the two. Unlike
    rollout, rows need not sum to 1: each pair has the whole network to itself.

    Every pair is a maximum-flow problem of its own, ``O(layers^2 * n^4)`` at worst for each: for
    more than about a hundred positions name the ``queries`` you care about. Capacities are
    rounded to multiples of ``2**-30``, which moves a flow by less than ``edges * 2**-31``, with
    ``edges = layers * n**2`` (1e-6 for 12 layers of 12 tokens).

    Args:
        attention: Attention of all layers, first layer first, in any form that `as_attention`
            takes.
        queries: Positions after the last layer to start from. Default: all.
        residual: Share of the residual connection, 0 to 1.
        head_fusion: How heads become one matrix: ``"mean"``, ``"max"`` or ``"min"``.
        mask: Which keys are visible, see `as_visible`. Default: what the maps carry.
        causal: Whether queries see no later key. Default: as `as_attention` finds it.
        progress: Called with (pairs done, pairs in all) after every query.

    Returns:
        ``(batch, len(queries), key)``, float64, on the CPU.

    Raises:
        TypeError: An option is of another kind.
        ValueError: A layer is not square, or is cross-attention; an option is out of range.

    Example:
        >>> weights = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
        >>> attention_flow([weights, weights])[0]
        tensor([[1.0000, 0.0000],
                [0.5000, 0.7500]], dtype=torch.float64)
    """
    from scipy.sparse.csgraph import maximum_flow

    if progress is not None and not callable(progress):
        raise TypeError(f"progress: {progress!r}; expected a function (done, total), or None")
    mixed = mixed_layers(
        attention,
        residual=residual,
        head_fusion=head_fusion,
        chance=False,
        mask=mask,
        causal=causal,
        caller="attention_flow",
    )
    batch, n, _ = mixed[0].shape
    starts = list(range(n)) if queries is None else whole_numbers(queries, "queries", "positions")
    for start in starts:
        if not 0 <= start < n:
            raise ValueError(f"queries: {start} is no position of a sequence of {n}")
    flow = torch.zeros(batch, len(starts), n, dtype=torch.float64)
    done, total = 0, batch * len(starts) * n
    for element in range(batch):
        # From the last layer, where a flow starts, down to the input.
        stack = [layer[element].cpu().numpy() for layer in reversed(mixed)]
        graph, reachable = _graph(stack), _reachable(stack)
        for row, start in enumerate(starts):
            for end in np.flatnonzero(reachable[start]):
                result = maximum_flow(graph, start, len(stack) * n + int(end))
                flow[element, row, int(end)] = result.flow_value / SCALE
            done += n
            if progress is not None:
                progress(done, total)
    return flow


def _graph(stack: list[npt.NDArray[np.float64]]) -> csr_array:
    """Number node ``i`` after ``k`` steps down ``k * n + i``."""
    from scipy.sparse import csr_array

    n = len(stack[0])
    sources, targets, capacities = [], [], []
    for depth, layer in enumerate(stack):
        capacity = np.rint(layer * SCALE).astype(np.int32)
        above, below = np.nonzero(capacity)
        sources.append(depth * n + above)
        targets.append((depth + 1) * n + below)
        capacities.append(capacity[above, below])
    nodes = (len(stack) + 1) * n
    edges = (np.concatenate(sources), np.concatenate(targets))
    return csr_array((np.concatenate(capacities), edges), shape=(nodes, nodes), dtype=np.int32)


def _reachable(stack: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.bool_]:
    """Which inputs any path reaches, ``(query, key)``: elsewhere the flow is 0."""
    reached = np.eye(len(stack[0]), dtype=bool)
    for layer in stack:
        reached = (reached.astype(np.float64) @ (layer > 0)) > 0
    return reached
