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
from attncheck.compiled.ledger import ramp_of
from attncheck.compiled.threads import on_one_thread
from attncheck.kernels import missing
from attncheck.kernels.launch import KernelError, launch, next_power

__all__ = ["measure_rapidly"]

NUMBERS: Final = 7
"""What a loop writes of each row."""

KNOWN: Final = frozenset(
    {
        *("row_sum_error", "entropy", "normalized_entropy", "effective_keys", "max_weight"),
        *("participation_ratio", "mean_distance", "sink_mass", "future_mass"),
    }
)

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
    on_gpu = _worth_kernel(layer)
    if not (whole and set(wanted) <= KNOWN and (on_gpu or worth_compiled(layer))):
        return None
    position = layer.n_key - layer.n_query
    with quiet(layer.device.type), on_one_thread():
        counts = torch.full((layer.n_query,), layer.n_key, device=layer.device)
        if layer.causal:
            counts = (layer.query_positions() + 1).clamp(0, layer.n_key)
        held = _read_on_gpu(layer) if on_gpu else None
    held = held if on_gpu else _read(layer, position, counts.numpy())
    if held is None:
        return None
    with quiet(layer.device.type), on_one_thread():
        return _measures(layer, counts, held, wanted)


def _worth_kernel(layer: LayerAttention) -> bool:
    """Whether a kernel may read a layer's weights: many, on a GPU, no float64, with triton."""
    return is_large(layer, "cuda") and missing() is None


def _read_on_gpu(layer: LayerAttention) -> Tensor | None:
    """Numbers of each row, as `_read` has them."""
    from attncheck.kernels.weights import measure_rows

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


def _read(layer: LayerAttention, position: int, counts: Any) -> Tensor | None:
    """Numbers of each row, ``(number, batch, head, query)``; None if weights are not in order."""
    from attncheck.compiled.loops import measure_rows

    ramp = ramp_of(layer.n_query, layer.n_key, layer.positional)
    found = np.zeros((*layer.shape[:2], NUMBERS, layer.n_query))

    def read(weights: Any, sequence: int, head: slice) -> Any:
        out = found[sequence, head]
        return measure_rows(weights, counts, position, layer.positional, ramp, out)

    return torch.from_numpy(found).movedim(2, 0) if all(read_heads(layer, read)) else None


def _measures(
    layer: LayerAttention, counts: Tensor, held: Tensor, wanted: Collection[str]
) -> dict[str, Rows]:
    mass, entropy, highest, participation, distance, first, later = held
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
