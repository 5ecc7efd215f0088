"""Diagonals as columns, without a loop."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["by_offset", "sum_diagonals"]


def by_offset(matrix: Tensor) -> Tensor:
    """Lay diagonals side by side: ``(..., query, key)`` to ``(..., query, offset)``.

    Column ``o`` of the result holds the keys ``o - (n_query - 1)`` tokens *behind* the query
    (queries being the last positions), 0 where there is no such key.
    """
    n_query, n_key = matrix.shape[-2:]
    wide = F.pad(matrix.flip(-1), (0, n_query))
    flat = wide.flatten(-2)[..., : n_query * (n_key + n_query - 1)]
    return flat.reshape(*matrix.shape[:-2], n_query, n_key + n_query - 1)


def sum_diagonals(matrix: Tensor, causal: bool) -> Tensor:
    """Sum along the diagonals, laid out as by `by_offset`: ``(..., offset)``.

    If nothing lies ahead of the queries, what stands before a row in memory is the zeros at the
    end of the row above, and the diagonals are read in place.
    """
    n_query, n_key = matrix.shape[-2:]
    if not causal or n_query > n_key:
        return by_offset(matrix).sum(-2)
    matrix, shift = matrix.contiguous(), n_key - n_query
    top = F.pad(matrix[..., 0, : shift + 1].flip(-1), (n_query - 1, n_query - 1))
    if n_query == 1:
        return top
    rows = matrix.as_strided(
        (*matrix.shape[:-2], n_query - 1, n_key),
        (*matrix.stride()[:-2], n_key + 1, 1),
        matrix.storage_offset() + 2 + shift,
    )
    return top + F.pad(rows.sum(-2).flip(-1), (n_query - 1, 0))
