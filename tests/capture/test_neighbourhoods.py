"""Queries that see keys of their own: a neighbourhood of each, not a sequence of all."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncheck import AttentionExtractor

LENGTH, SIZE = 7, 4


class Neighbourhood(nn.Module):
    """Each query sees three keys around it, cut out by `unfold`."""

    def __init__(self, heads: int, heads_last: bool) -> None:
        super().__init__()
        self.h, self.heads_last = heads, heads_last
        self.expected = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        q = x.unflatten(-1, (self.h, SIZE)).transpose(1, 2)
        near = F.pad(q, (0, 0, 1, 1)).unfold(2, 3, 1)  # (batch, head, query, size, key)
        self.expected = torch.einsum("bhnd,bhndw->bhnw", q, near).softmax(-1)
        if self.heads_last:
            q, near = q.transpose(1, 2), near.transpose(1, 2)
        weights = torch.einsum("bhnd,bhndw->bhnw", q, near).softmax(-1)
        return torch.einsum("bhnw,bhndw->bhnd", weights, near)


@pytest.mark.parametrize("heads_last", [False, True])
@pytest.mark.parametrize(("batch", "heads"), [(2, 4), (1, 2), (2, 1), (1, 1)])
def test_a_neighbourhood_has_its_positions_where_queries_are(
    batch: int, heads: int, heads_last: bool
) -> None:
    model = Neighbourhood(heads, heads_last)
    x = torch.randn(batch, LENGTH, heads * SIZE)
    (layer,) = AttentionExtractor(model).get_attention(x).layers
    torch.testing.assert_close(layer.weights, model.expected, rtol=0, atol=1e-6)
    assert layer.kind == "unknown"
    assert "keys of its own" in layer.note


def test_one_query_of_each_sequence_is_no_neighbourhood() -> None:
    class Pooling(nn.Module):
        def forward(self, memory: Tensor, x: Tensor) -> Tensor:
            key = memory.unflatten(-1, (4, SIZE)).transpose(1, 2)
            scores = torch.einsum("bhd,bhnd->bhn", x.unflatten(-1, (4, SIZE)), key)
            return torch.einsum("bhn,bhnd->bhd", scores.softmax(-1), key)

    for batch in (2, 4):
        args = torch.randn(batch, LENGTH, 16), torch.randn(batch, 16)
        (layer,) = AttentionExtractor(Pooling()).get_attention(*args).layers
        assert layer.weights.shape == (batch, 4, 1, LENGTH)
        assert "keys of its own" not in layer.note
