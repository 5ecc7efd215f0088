"""How many floating-point operations a call does, as torch counts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["count_flops"]


def count_flops(function: Callable[[], object]) -> int | None:
    """Return the operations of all matrix products and attention kernels of one call.

    Attention counts in full, also where a causal kernel skips half of it.

    Returns:
        Operations, two for each product and sum; None where they cannot be counted.

    Example:
        >>> one = torch.ones(8, 8)
        >>> count_flops(lambda: one @ one)
        1024
    """
    kernel = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    more: dict[Any, Any] = {} if kernel is None else {kernel: _of_attention}
    counter = FlopCounterMode(display=False, custom_mapping=more)
    try:
        with counter:
            function()
    except Exception:  # compiled and exported models refuse to be watched
        return None
    return int(counter.get_total_flops()) or None


def _of_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Two products, of every query with every key and of every weight with every value."""
    batch, heads, n_query, size = query
    return int(2 * batch * heads * n_query * key[2] * (size + value[3]))
