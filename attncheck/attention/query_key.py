"""`QueryKey`: what attention weights are made from, where the weights themselves are not held."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

__all__ = ["QueryKey"]

SMALL: Final = 1 << 18
"""Cells of a causal mask that is kept for the next layer."""

TENSORS: Final = ("query", "key", "bias", "mask", "rows", "sinks")


@dataclass(frozen=True, eq=False, repr=False)
class QueryKey:
    """Query and key of one layer, with all that its kernel did to their scores.

    Weights follow from it, in this order, in float32 (float64 where query or key are)::

        scores[b, h, i, j] = scale * query[b, h, i] . key[b, key_heads[h], j]
        scores = softcap * tanh(scores / softcap)     where softcap is given
        scores += bias                                where bias is given
        scores = -inf                                 where causal and j > rows[i]
        scores = -inf where a bool mask is False; scores += an additive mask
        weights = softmax over j (and sinks[b, h, i], which is no key); a row of -inf is 0

    `scores` and `weights` do this for any block of queries. Tensors are copies that nobody else
    changes, detached, on one device. Axes given as "or 1" broadcast.

    Attributes:
        query: ``(batch or 1, head, query, size)``, in the kernel's dtype; the held heads and
            queries only, after rotary embedding and the like.
        key: ``(batch or 1, key-value head, key, size)``, in the kernel's dtype, heads not repeated
            for the query heads that share them.
        key_heads: ``(head,)``: for each query head held, its entry on axis 1 of `key`.
        scale: Factor on the scores.
        softcap: Bound of the scores, or None.
        bias: ``(batch or 1, head or 1, query or 1, key)``, floating, finite or None; added to the
            scores.
        mask: ``(batch or 1, head or 1, query or 1, key)`` or None: bool (True = visible), or
            floating and added (as given: ``-inf``, ``finfo.min`` or any finite value).
        causal: The kernel hides keys with ``j > rows[i]``, beside what `mask` hides. Counted from
            the first key (top-left), as ``scaled_dot_product_attention(is_causal=True)`` does.
            `LayerAttention.causal` may be True without it: then a `mask` of every query says the
            same, or the layer adds it.
        rows: ``(query,)``, int64: number of each held query in the call; None: 0, 1, 2, ...
        sinks: ``(batch or 1, head, query or 1, 1)`` or None: score of a learned sink.
        dtype: Of weights that are made; None: as computed.
        lasting: A layer keeps this record, and makes weights anew whenever nobody holds them.
            False: the weights take its place once they are made.

    Example:
        >>> record = QueryKey(torch.zeros(1, 2, 3, 4), torch.zeros(1, 1, 3, 4), (0, 0), 0.5)
        >>> record
        QueryKey(query (1, 2, 3, 4) float32, key (1, 1, 3, 4) float32, scale 0.5)
        >>> record.shape
        (1, 2, 3, 3)
        >>> record.weights()[0][0, 0, 0]
        tensor([0.3333, 0.3333, 0.3333])
    """

    query: Tensor
    key: Tensor
    key_heads: tuple[int, ...]
    scale: float
    softcap: float | None = None
    bias: Tensor | None = None
    mask: Tensor | None = None
    causal: bool = False
    rows: Tensor | None = None
    sinks: Tensor | None = None
    dtype: torch.dtype | None = None
    lasting: bool = True

    def __repr__(self) -> str:
        held = ((name, getattr(self, name)) for name in TENSORS)
        parts = [
            f"{name} {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
            for name, tensor in held
            if tensor is not None
        ]
        parts.append(f"scale {self.scale:.4g}")
        if self.softcap is not None:
            parts.append(f"softcap {self.softcap:.4g}")
        return f"QueryKey({', '.join(parts)}{', causal' if self.causal else ''})"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(batch, head, query, key)`` of the weights."""
        batch = max(self.query.shape[0], self.key.shape[0])
        return batch, self.query.shape[1], self.query.shape[2], self.key.shape[2]

    @property
    def device(self) -> torch.device:
        """Where the weights are made."""
        return self.query.device

    @property
    def nbytes(self) -> int:
        """Bytes of query and key, and of a bias or mask that is not one for all heads."""
        own = [part for part in (self.bias, self.mask) if part is not None and part.shape[1] > 1]
        return sum(part.nbytes for part in (self.query, self.key, *own))

    @property
    def looks_ahead(self) -> bool:
        """Whether it says nothing by which one of several queries could see no later key."""
        bare = self.mask is None or self.mask.shape[2] == 1
        return bare and not self.causal and self.query.shape[2] > 1

    @property
    def computed_in(self) -> torch.dtype:
        """dtype of the scores: float32 at least."""
        wider = torch.promote_types(self.query.dtype, self.key.dtype)
        return torch.promote_types(wider, torch.float32)

    @property
    def weights_dtype(self) -> torch.dtype:
        """dtype of weights that are made."""
        return self.dtype or self.computed_in

    def scores(self, queries: slice | Tensor | None = None) -> Tensor:
        """Return what softmax runs over, ``(batch, head, chosen query, key)``; hidden is ``-inf``.

        Args:
            queries: Which of the held queries: a slice, or their numbers, int64. Default: all.
        """
        scores = self._products(queries)
        if self.softcap is not None:
            scores = scores.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.bias is not None:
            scores = scores.add_(_of_rows(self.bias, queries))
        if self.causal:
            scores = scores.add_(self._future(queries, scores.dtype))
        if self.mask is None:
            return scores
        mask = _of_rows(self.mask, queries)
        if mask.dtype == torch.bool:
            return scores.masked_fill_(~mask, -math.inf)
        return scores.add_(mask)

    def _products(self, queries: slice | Tensor | None) -> Tensor:
        """Multiply queries and keys, and scale: ``(batch, head, chosen query, key)``."""
        dtype = self.computed_in
        query = _chosen(self.query, queries).to(dtype)
        (batch, heads, n_query, size), n_key = query.shape, self.key.shape[2]
        shared = self.key.shape[1]
        if query.shape[0] != self.key.shape[0] or self.key_heads != _in_groups(heads, shared):
            keys = self.key_of_heads().to(dtype)
            return torch.matmul(query, keys.transpose(-1, -2)).mul_(self.scale)
        # One product for each key head, whose queries stand below each other: no key is repeated.
        rows = query.reshape(batch * shared, heads // shared * n_query, size)
        keys = self.key.to(dtype).reshape(batch * shared, n_key, size).transpose(-1, -2)
        made = torch.baddbmm(rows.new_zeros(()), rows, keys, beta=0, alpha=self.scale)
        return made.view(batch, heads, n_query, n_key)

    def weights(self, queries: slice | Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return weights ``(batch, head, chosen query, key)`` and their sink mass.

        Sink mass is ``(batch, head, chosen query)``, None without `sinks`. A row that sees no key
        is all zero, as ``scaled_dot_product_attention`` has it.

        Args:
            queries: Which of the held queries: a slice, or their numbers, int64. Default: all.
        """
        scores = self.scores(queries)
        if self.sinks is None:
            weights = torch.softmax(scores, dim=-1)
            if self.mask is not None and bool(weights[..., :1].isnan().any()):
                weights.masked_fill_((scores == -math.inf).all(-1, keepdim=True), 0)
            return weights.to(self.weights_dtype), None
        sinks = _of_rows(self.sinks, queries).to(scores.dtype).expand(*scores.shape[:3], 1)
        weights = torch.softmax(torch.cat([scores, sinks], dim=-1), dim=-1)
        sink_mass = weights[..., -1].to(self.weights_dtype, copy=True)
        return weights[..., :-1].contiguous().to(self.weights_dtype), sink_mass

    def key_of_heads(self) -> Tensor:
        """Return the key that each query head reads, ``(batch or 1, head, key, size)``."""
        if self.key_heads == tuple(range(self.key.shape[1])):
            return self.key
        if self.key.shape[1] == 1:
            return self.key.expand(-1, len(self.key_heads), -1, -1)
        return self.key[:, torch.tensor(self.key_heads, device=self.key.device)]

    def moved(self, move: Callable[[Tensor], Tensor]) -> QueryKey:
        """Return the record with a function applied to each of its tensors."""
        held = {name: getattr(self, name) for name in TENSORS}
        changed: dict[str, Any] = {name: move(t) for name, t in held.items() if t is not None}
        return replace(self, **changed)

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> QueryKey:
        """Return the record with its tensors on another device, or for weights of another dtype."""
        moved = self if device is None else self.moved(lambda tensor: tensor.to(device))
        return replace(moved, dtype=dtype or self.dtype)

    def _future(self, queries: slice | Tensor | None, dtype: torch.dtype) -> Tensor:
        """``-inf`` at keys behind the row's number, else 0: ``(chosen query, key)``."""
        # Adding -inf to all heads costs a tenth of filling them by a mask.
        n_query, n_key = self.query.shape[2], self.key.shape[2]
        rows = self.rows
        if rows is None:
            if n_query * n_key <= SMALL and not torch.is_inference_mode_enabled():
                whole = _triangle(n_query, n_key, dtype, self.device)
                if isinstance(queries, Tensor):
                    return whole.index_select(0, queries)
                return whole if queries is None else whole[queries]
            rows = torch.arange(n_query, device=self.device)
        rows = rows if queries is None else rows[queries]
        return _behind(rows, n_key, dtype)


def _behind(rows: Tensor, n_key: int, dtype: torch.dtype) -> Tensor:
    hidden = torch.arange(n_key, device=rows.device) > rows[:, None]
    return torch.zeros(hidden.shape, dtype=dtype, device=rows.device).masked_fill_(
        hidden, -math.inf
    )


@functools.lru_cache(maxsize=4)
def _triangle(n_query: int, n_key: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """All layers of a short call share it; nobody changes it."""
    return _behind(torch.arange(n_query, device=device), n_key, dtype)


@functools.lru_cache(maxsize=64)
def _in_groups(n_heads: int, n_shared: int) -> tuple[int, ...]:
    """The key head of each query head where equally many stand in a row for each."""
    if not n_shared or n_heads % n_shared:
        return ()
    return tuple(head // (n_heads // n_shared) for head in range(n_heads))


def _of_rows(tensor: Tensor, queries: slice | Tensor | None) -> Tensor:
    """Choose queries of a mask, a bias or sinks, unless one entry stands for all."""
    return tensor if tensor.shape[2] == 1 else _chosen(tensor, queries)


def _chosen(tensor: Tensor, queries: slice | Tensor | None) -> Tensor:
    if queries is None:
        return tensor
    if isinstance(queries, Tensor):
        return tensor.index_select(2, queries)
    return tensor[:, :, queries]
