"""Diagonals as columns, without a loop."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["by_offset"]


def by_offset(matrix: Tensor) -> Tensor:
    """Lay diagonals side by side: ``(..., query, key)`` to ``(..., query, offset)``.

    Column ``o`` of the result holds the keys ``o - (n_query - 1)`` tokens *behind* the query
    (queries being the last positions), 0 where there is no such key.
    """
    n_query, n_key = matrix.shape[-2:]
    wide = F.pad(matrix.flip(-1), (0, n_query))
    flat = wide.flatten(-2)[..., : n_query * (n_key + n_query - 1)]
    return flat.reshape(*matrix.shape[:-2], n_query, n_key + n_query - 1)
