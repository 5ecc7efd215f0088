"""The measures of large layers, all in one read of the weights: by compiled loops on a CPU, by a
kernel on a GPU, where they are there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from attncheck.attention import LayerAttention
from attncheck.attention.quiet import quiet
from attncheck.attention.reading import is_large, read_heads, worth_compiled
from attncheck.compiled.ledger import MEASURES, ramp_of
from attncheck.compiled.threads import on_one_thread
from attncheck.kernels import missing
from attncheck.kernels.launch import KernelError, launch, next_power

__all__ = ["measure_rapidly"]

KNOWN: Final = frozenset(MEASURES)

Rows = tuple[Tensor, Tensor]


def measure_rapidly(layer: LayerAttention, wanted: Collection[str]) -> dict[str, Rows] | None:
    """Measure every row of a layer without a mask; values as `attncheck.metrics.measures` says.

    Args:
        layer: The layer.
        wanted: Names of measures.

    Returns:
        Values, NaN where none counts, and which of them count, by name; None where another way is
        needed: a mask, queries left out, float64, few weights, a measure that sorts, no numba (no
        triton on a GPU), or weights that are negative, not finite or on hidden keys.
    """
    whole = layer.mask is None and layer.sighted is None and not layer.queries
    if not (whole and set(wanted) <= KNOWN):
        return None
    if worth_compiled(layer):
        return _on_cpu(layer, wanted)
    return _on_gpu(layer, wanted) if _worth_kernel(layer) else None


def _on_cpu(layer: LayerAttention, wanted: Collection[str]) -> dict[str, Rows] | None:
    from attncheck.compiled.measures import COUNTS, Measured, Seen, measure_rows

    batch, heads, n_query, n_key = layer.shape
    position, positional = n_key - n_query, layer.positional
    high = np.full(n_query, n_key)
    if layer.causal:
        high = (np.arange(n_query) + position + 1).clip(0)
    ramp = ramp_of(n_query, n_key, positional)
    seen = Seen(high, np.log(high.clip(1)), position, positional, ramp)
    values = np.empty((batch, heads, n_query, len(MEASURES)))
    counted = np.empty((batch, heads, n_query, max(COUNTS) + 1), dtype=bool)
    with quiet("cpu"):
        sinks = np.zeros((batch, 0, 0))
        if layer.sink_mass is not None:
            sinks = layer.sink_mass.detach().double().expand(layer.shape[:3]).contiguous().numpy()

    def read(weights: Any, sequence: int, head: slice) -> Any:
        found = Measured(values[sequence, head], counted[sequence, head])
        return measure_rows(weights, seen, sinks[sequence, head], found)

    if not all(read_heads(layer, read)):
        return None
    held = torch.from_numpy(values).unbind(-1)
    kinds = torch.from_numpy(counted).unbind(-1)
    rows = {name: (held[i], kinds[COUNTS[i]]) for i, name in enumerate(MEASURES)}
    return {name: rows[name] for name in wanted}


def _worth_kernel(layer: LayerAttention) -> bool:
    """Whether a kernel may read a layer's weights: many, on a GPU, no float64, with triton."""
    return is_large(layer, "cuda") and missing() is None


def _on_gpu(layer: LayerAttention, wanted: Collection[str]) -> dict[str, Rows] | None:
    with quiet(layer.device.type), on_one_thread():
        held = _read_on_gpu(layer)
        return None if held is None else _measures(layer, held, wanted)


def _read_on_gpu(layer: LayerAttention) -> Tensor | None:
    """Numbers of each row as the kernel writes them, ``(number, batch, head, query)``."""
    from attncheck.kernels.weights import NUMBERS, measure_rows

    weights = layer.weights.detach()
    if weights.stride(-1) != 1 or weights.stride(0) != weights.stride(1) * layer.n_heads:
        weights = weights.contiguous()
    batch, heads, n_query, n_key = weights.shape
    n_lines = batch * heads * n_query
    found = torch.empty(NUMBERS, n_lines, dtype=torch.float64, device=weights.device)
    wrong = torch.zeros(1, dtype=torch.int32, device=weights.device)
    keys = min(1024, next_power(n_key))
    rows = max(1, 4096 // keys)
    try:
        launch(
            measure_rows, (-(-n_lines // rows),), weights, found, wrong, n_query, n_key, n_lines,
            weights.stride(1), weights.stride(2), n_lines, n_key - n_query, CAUSAL=layer.causal,
            POSITIONAL=layer.positional, ROWS=rows, KEYS=keys, num_warps=8,
        )  # fmt: skip
    except KernelError:
        return None
    return None if bool(wrong) else found.view(NUMBERS, batch, heads, n_query)


def _measures(layer: LayerAttention, held: Tensor, wanted: Collection[str]) -> dict[str, Rows]:
    mass, entropy, highest, participation, distance, first, later = held
    counts = torch.full((layer.n_query,), layer.n_key, device=layer.device)
    if layer.causal:
        counts = (layer.query_positions() + 1).clamp(0, layer.n_key)
    highest_entropy = counts.clamp(min=1).double().log()
    entropy = entropy.clamp(min=0).minimum(highest_entropy)
    sink = 0.0 if layer.sink_mass is None else layer.sink_mass.detach().double()
    valid = (mass > 0) & (counts > 0)
    distant = valid if layer.positional else torch.zeros_like(valid)
    behind = valid & (layer.query_positions() > 0) if layer.positional else valid
    made: dict[str, Callable[[], Rows]] = {
        "row_sum_error": lambda: ((mass + sink - 1).abs(), valid),
        "entropy": lambda: (entropy, valid),
        "normalized_entropy": lambda: (
            entropy / highest_entropy,
            valid & (counts >= 2),
        ),
        "effective_keys": lambda: (entropy.exp(), valid),
        "max_weight": lambda: (highest, valid),
        "participation_ratio": lambda: (participation, valid),
        "mean_distance": lambda: (distance, distant),
        "sink_mass": lambda: (first + sink, behind),
        "future_mass": lambda: (later, distant),
    }
    return _only({name: made[name]() for name in wanted})


def _only(rows: dict[str, Rows]) -> dict[str, Rows]:
    """Put NaN where nothing counts; several measures share what counts."""
    hollow = {id(valid): ~valid for _, valid in rows.values()}
    hollow = {key: blank for key, blank in hollow.items() if bool(blank.any())}
    return {
        name: (values.masked_fill(hollow[id(valid)], torch.nan), valid)
        if id(valid) in hollow
        else (values, valid)
        for name, (values, valid) in rows.items()
    }
