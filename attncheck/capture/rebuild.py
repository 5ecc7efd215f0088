"""From what a kernel got to a `QueryKey`: the weights that it never shows, by its own rules."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch

from attncheck.attention import QueryKey
from attncheck.capture.call import AttentionCall
from attncheck.capture.select import Chosen

__all__ = ["Snapshots", "contents", "copied", "of_queries", "of_query_heads", "record_of"]

REMEMBERED = 4
"""How many shared tensors are kept: layers share their masks, a model has one or two of them."""


class Snapshots:
    """Copies of tensors that several layers share, each made once, without what is repeated."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[Any, ...], tuple[Tensor, Tensor]] = OrderedDict()

    def of(self, tensor: Tensor | None) -> Tensor | None:
        """Return a copy that nobody changes; axes that only repeat an entry have length 1."""
        if tensor is None:
            return None
        key = contents(tensor)
        if key is None or key not in self._known:
            # An alias of the tensor is kept with its copy: its memory must stay taken.
            alias = tensor.detach()
            self._known[key or ()] = alias, once(alias).clone()
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return self._known[key or ()][1]


def contents(tensor: Tensor) -> tuple[Any, ...] | None:
    """Say what a tensor holds as long as its memory stays taken; None: nobody knows.

    Inference tensors do not count how often they were changed, wrappers of `torch.func` have no
    memory.
    """
    if tensor.is_inference() or _functorch.is_functorch_wrapped_tensor(tensor):
        return None
    place = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
    return (*place, tensor.device, tensor._version)


def once(tensor: Tensor) -> Tensor:
    """Return a view without what is repeated: axes that only repeat an entry have length 1."""
    for axis in range(tensor.ndim - 1):
        if tensor.shape[axis] > 1 and tensor.stride(axis) == 0:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def record_of(call: AttentionCall, heads: Chosen) -> QueryKey:
    """Describe a call's scores; its tensors are the call's own, not copies.

    Args:
        call: Query and key, and what the backend did with them.
        heads: Which query heads to hold.
    """
    assert call.query is not None
    assert call.key is not None
    n_heads, n_shared = call.query.shape[1], call.key.shape[1]
    group = max(n_heads // n_shared, 1)
    reads = [head // group for head in heads.numbers]
    key = call.key.detach()
    if heads.index is not None and n_shared > 1:
        used = sorted(set(reads))
        key = key[:, used]
        reads = [used.index(number) for number in reads]
    sinks = call.sinks
    if sinks is not None:
        sinks = heads.of(sinks.detach().view(1, -1, 1, 1) if sinks.ndim == 1 else sinks.detach(), 1)
    return QueryKey(
        query=heads.of(call.query.detach(), 1),
        key=key,
        key_heads=tuple(reads),
        scale=1 / math.sqrt(call.query.shape[-1]) if call.scale is None else call.scale,
        softcap=call.softcap,
        bias=None if call.bias is None else heads.of(once(call.bias.detach()), 1),
        mask=None if call.mask is None else heads.of(once(call.mask.detach()), 1),
        causal=call.causal,
        sinks=sinks,
    )


def of_queries(record: QueryKey, queries: Chosen) -> QueryKey:
    """Narrow a record of all queries to the chosen ones."""
    if queries.index is None:
        return record
    return replace(
        record,
        query=queries.of(record.query, 2),
        bias=None if record.bias is None else queries.of(record.bias, 2),
        mask=None if record.mask is None else queries.of(record.mask, 2),
        sinks=None if record.sinks is None else queries.of(record.sinks, 2),
        rows=queries.index,
    )


def copied(record: QueryKey, **changes: Any) -> QueryKey:
    """Copy what the model may change after the call; mask and bias are `Snapshots` already.

    Args:
        record: To copy.
        changes: To other fields of the copy.
    """
    copies = {"query": record.query.clone(), "key": record.key.clone()}
    if record.sinks is not None:
        copies["sinks"] = record.sinks.clone()
    return QueryKey(**{**vars(record), **copies, **changes})


def of_query_heads(tensor: Tensor, heads: Chosen, n_heads: int) -> Tensor:
    """Give each selected query head its key or value, which a group of heads may share.

    Args:
        tensor: ``(batch, key-value head, key, size)``.
        heads: Selected query heads.
        n_heads: How many query heads there are.
    """
    group = max(n_heads // tensor.shape[1], 1)
    if group == 1:
        return heads.of(tensor, 1)
    return tensor[:, torch.tensor([head // group for head in heads.numbers], device=tensor.device)]
