"""Heads ahead of the batch: told however weights are made and meet values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.capture.handwritten import Written, heads, merged, require, weights_of


def einsum(x: Tensor) -> Tensor:
    q = heads(x, 4).transpose(0, 1)
    weights = (torch.einsum("hbqd,hbkd->hbqk", q, q) / 2).softmax(-1)
    return torch.einsum("hbqk,hbkd->bqhd", weights, q).flatten(2)


def channels_first(x: Tensor) -> Tensor:
    q = heads(x, 4).transpose(0, 1).flatten(0, 1).mT
    weights = (torch.bmm(q.mT, q) / 2).softmax(-1)
    return torch.bmm(q, weights.mT).view(4, len(x), 4, -1).permute(1, 3, 0, 2).flatten(2)


def divided_late(x: Tensor) -> Tensor:
    q = heads(x, 4).transpose(0, 1).flatten(0, 1)
    raised = (q @ q.mT / 2).exp()
    return merged(
        ((raised @ q) / raised.sum(-1, keepdim=True)).view(4, len(x), -1, 4).transpose(0, 1)
    )


def in_tiles(x: Tensor) -> Tensor:
    q = heads(x, 4).transpose(0, 1).flatten(0, 1)
    out, total = torch.zeros(()), torch.zeros(())
    for k in q.split(3, 1):
        raised = (q @ k.mT / 2).exp()
        out, total = out + raised @ k, total + raised.sum(-1, keepdim=True)
    return merged((out / total).view(4, len(x), -1, 4).transpose(0, 1))


def viewed_for_a_mask(x: Tensor) -> Tensor:
    q = heads(x, 4).transpose(0, 1).flatten(0, 1)
    scores = (torch.bmm(q, q.mT) / 2).view(4, len(x), 7, 7).masked_fill(torch.zeros(1) > 0, -1e9)
    out = torch.bmm(scores.view(-1, 7, 7).softmax(-1), q)
    return merged(out.view(4, len(x), 7, 4).transpose(0, 1))


def dropped_at_random(x: Tensor) -> Tensor:
    q = heads(x, 4).transpose(0, 1).flatten(0, 1)
    out = F.dropout(weights_of(q, q), 0.5) @ q
    return merged(out.view(4, len(x), 7, 4).transpose(0, 1))


@pytest.mark.parametrize(
    "way", [einsum, channels_first, divided_late, in_tiles, viewed_for_a_mask, dropped_at_random]
)
@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("declares", [0, 4])
def test_heads_first_are_told_however_weights_meet_values(
    way: Callable[[Tensor], Tensor], batch: int, declares: int
) -> None:
    x = torch.randn(batch, 7, 16)
    require(Written(way, declares), (x,), weights_of(heads(x, 4), heads(x, 4)))
