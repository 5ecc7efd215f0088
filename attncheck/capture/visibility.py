"""Which keys a call could see, read from the mask its backend got."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from attncheck.attention.masks import HIDDEN_BELOW
from attncheck.capture.copies import version_of

__all__ = ["Visibility", "VisibilityReader"]

REMEMBERED = 4
"""How many masks are kept: layers share theirs, a model has one or two of them."""


@dataclass(frozen=True)
class Visibility:
    """What `LayerAttention` says about visible keys.

    Attributes:
        mask: Bool, broadcastable to ``(batch, head, query, key)``; None if `causal` says all.
        causal: Query ``i`` sees no key behind position ``i + n_key - n_query``.
    """

    mask: Tensor | None
    causal: bool

    @cached_property
    def rows(self) -> Tensor | None:
        """Bool ``(batch or 1, head or 1, query or 1)``: rows that see any key; None: all do."""
        return None if self.mask is None else self.mask.any(-1)

    @cached_property
    def keys(self) -> Tensor | None:
        """Bool ``(batch or 1, head or 1, key)``: keys that any query sees; None: all are."""
        return None if self.mask is None else self.mask.any(-2)


class VisibilityReader:
    """Reads masks, each one once: every layer of a model gets the same tensor."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[object, ...], tuple[Tensor, Visibility]] = OrderedDict()

    def read(
        self, mask: Tensor | None, n_query: int, n_key: int, *, top_left: bool, decoding: bool
    ) -> Visibility:
        """Turn a backend's mask and causal flag into what is visible.

        Args:
            mask: Bool or additive, four-dimensional, or None.
            n_query: Number of queries.
            n_key: Number of keys.
            top_left: The kernel is causal counted from the first key, as
                ``scaled_dot_product_attention(is_causal=True)`` is.
            decoding: Queries are the last positions of a causal sequence, so that no mask is
                needed for one query.
        """
        if mask is None and not top_left:
            return Visibility(None, causal=decoding and n_query == 1)
        if mask is None and n_query == n_key:
            return Visibility(None, causal=True)
        inference = mask is not None and mask.is_inference()  # counts no versions
        version = None if mask is None else version_of(mask)
        key = (id(mask), version, n_query, n_key, top_left, decoding)
        if key not in self._known or inference:
            seen = _triangle(n_query, n_key, mask) if mask is None else _visible(mask)
            if mask is not None and top_left:
                seen = seen & _triangle(n_query, n_key, mask)
            # The mask itself is kept with the result: its id must stay taken.
            found = _described(seen, n_query, n_key, decoding)
            self._known[key] = (seen if mask is None else mask, found)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return self._known[key][1]


def _visible(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask > HIDDEN_BELOW


def _triangle(n_query: int, n_key: int, like: Tensor | None) -> Tensor:
    device = None if like is None else like.device
    return torch.ones(n_query, n_key, dtype=torch.bool, device=device).tril_()[None, None]


def _described(seen: Tensor, n_query: int, n_key: int, decoding: bool) -> Visibility:
    """Say as much as possible with `causal`, and with a mask only what that leaves out."""
    full = seen.expand(*seen.shape[:2], n_query, n_key)
    if bool(full.all()):
        return Visibility(None, causal=n_query == 1 and (decoding or n_key > 1))
    if n_query == n_key:  # also where every sequence of the batch ends in padding
        ends_together = bool(full.diagonal(dim1=-2, dim2=-1)[..., 1:].any())
    else:
        ends_together = n_query < n_key and bool(full[..., -1, -1].any())
    if not ends_together or bool(full.triu(1 + n_key - n_query).any()):
        return Visibility(seen, causal=False)
    if n_query == n_key and bool((full == _triangle(n_query, n_key, seen)).all()):
        return Visibility(None, causal=True)
    return Visibility(seen, causal=n_query > 1)
