"""The measures of a row, one function each: a block of rows in, values and valid rows out.

Measures of shape (entropy, effective keys, participation, Gini, distance) are those of the row's
distribution over its *visible* keys: a row is divided by its mass there, so that neither the
rounding of a half-precision softmax nor a learned sink, which is no key, bends them. Masses are
shares of all the attention of a row and are not divided by anything.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from attncheck.metrics.blocks import RowBlock, row_dot

__all__ = [
    "effective_keys",
    "entropy",
    "future_mass",
    "gini",
    "max_weight",
    "mean_distance",
    "normalized_entropy",
    "participation_ratio",
    "row_sum_error",
    "sink_mass",
]

Rows = tuple[Tensor, Tensor]
"""Values (float64) and which of them count (bool), both ``(batch, head, query)``."""


def row_sum_error(block: RowBlock) -> Rows:
    """``|sum_j a_ij + sink mass - 1|``, hidden keys included."""
    sums = block.total
    if block.sink_mass is not None:
        sums = sums + block.sink_mass
    return (sums - 1).abs(), block.valid


def entropy(block: RowBlock) -> Rows:
    """``-sum_j p_ij log p_ij`` in nats."""
    return block.entropy, block.carried


def normalized_entropy(block: RowBlock) -> Rows:
    """``H_i / log v_i``; rows with a single visible key have none."""
    return block.entropy / block.log_counts, block.carried & (block.counts >= 2)


def effective_keys(block: RowBlock) -> Rows:
    """``exp(H_i)``: as many equally weighted keys would have this entropy."""
    return block.entropy.exp(), block.carried


def max_weight(block: RowBlock) -> Rows:
    """``max_j a_ij`` over visible keys."""
    highest = block.highest if block.clean else block.weights.amax(-1)
    return highest.double(), block.carried


def participation_ratio(block: RowBlock) -> Rows:
    """``1 / sum_j p_ij^2``."""
    return block.mass.square() / row_dot(block.weights, block.weights), block.carried


def gini(block: RowBlock) -> Rows:
    """Gini coefficient over the ``v_i`` visible keys, divided by its maximum ``1 - 1/v_i``.

    That is ``1 - 2 sum r p_r / (v - 1)``, with ``r`` from 0 the descending rank: hidden keys weigh
    0 and come behind all others, so that no rank depends on how many they are.
    """
    size = block.weights.shape[-1]
    ranks = torch.arange(size - 1.0, -1, -1, dtype=block.weights.dtype, device=block.given.device)
    ranked = row_dot(_ascending(block.weights), ranks.expand_as(block.weights))
    value = 1 - 2 * ranked / block.mass / (block.counts - 1)
    return value.clamp(0, 1), block.carried & (block.counts >= 2)


def mean_distance(block: RowBlock) -> Rows:
    """``sum_j p_ij |p_i - j|`` in tokens, ``p_i`` the position of query ``i`` among the keys."""
    if block.places is None:
        return _nothing(block)
    return row_dot(block.weights, block.places.distance) / block.mass, block.carried


def sink_mass(block: RowBlock) -> Rows:
    """Mass on the first visible key, plus that on a learned sink, of queries behind that key.

    Rows that cannot see the key (a sliding window) count only where there is a learned sink.
    """
    index = block.first_key[..., None, None].expand(*block.counts.shape, 1)
    value = block.weights.gather(-1, index.clamp_max(block.reach - 1))[..., 0].double()
    counted = block.valid
    if block.places is not None:
        counted = counted & (block.places.positions > block.first_key[..., None])
    if block.sink_mass is not None:
        return value * block.sees_first + block.sink_mass, counted
    return value, counted & block.sees_first


def future_mass(block: RowBlock) -> Rows:
    """Mass on keys behind the query's own position, hidden keys included."""
    if block.places is None:
        return _nothing(block)
    if block.places.causal and block.clean and block.far is None:
        return torch.zeros_like(block.mass), block.valid
    return row_dot(block.given, block.places.later(block.given.shape[-1])), block.valid


def _nothing(block: RowBlock) -> Rows:
    """For measures of position, where query and key positions do not count the same tokens."""
    return torch.zeros_like(block.mass), torch.zeros_like(block.valid)


def _ascending(weights: Tensor) -> Tensor:
    """Sort each row. On a CPU through numpy, whose vectorised sort is several times faster."""
    if weights.device.type == "cpu":
        return torch.from_numpy(np.sort(weights.numpy(), axis=-1))
    return weights.sort(-1).values
