"""Keys that are picked for every query: their numbers are no positions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attncheck import AttentionExtractor
from tests.capture.handwritten import Written, heads, merged, weights_of


class Taking(nn.Module):
    """Takes whatever it is given."""

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.num_heads, self.run = 4, forward

    def forward(self, *args: Tensor) -> Tensor:
        return self.run(*args)


def near(x: Tensor) -> tuple[Tensor, Tensor]:
    """Give every position three keys around it."""
    q = heads(x, 4)
    n = x.shape[1]
    return q, q[:, :, (torch.arange(n)[:, None] + torch.arange(-1, 2)) % n]


def _by_matrices(x: Tensor) -> Tensor:
    q, k = near(x)
    return merged((weights_of(q[:, :, :, None], k) @ k)[:, :, :, 0])


def _by_einsum(x: Tensor) -> Tensor:
    q, k = near(x)
    weights = (torch.einsum("bhnd,bhnkd->bhnk", q, k) / 2).softmax(-1)
    return merged(torch.einsum("bhnk,bhnkd->bhnd", weights, k))


def _heads_behind(x: Tensor) -> Tensor:
    q, k = (t.transpose(1, 2) for t in near(x))
    weights = (torch.einsum("bnhd,bnhkd->bnhk", q, k) / 2).softmax(-1)
    return torch.einsum("bnhk,bnhkd->bnhd", weights, k).flatten(2)


@pytest.mark.parametrize("way", [_by_matrices, _by_einsum, _heads_behind])
@pytest.mark.parametrize("batch", [1, 2, 4, 6])
@pytest.mark.parametrize("length", [4, 6])
@pytest.mark.parametrize("takes", [Taking, lambda way: Written(way, 4), Written])
def test_keys_of_its_own_for_every_query_are_noted(
    way: Callable[[Tensor], Tensor],
    batch: int,
    length: int,
    takes: Callable[[Callable[[Tensor], Tensor]], nn.Module],
) -> None:
    x = torch.randn(batch, length, 16)
    q, k = near(x)
    (layer,) = AttentionExtractor(takes(way)).get_attention(x).layers
    expected = weights_of(q[:, :, :, None], k)[:, :, :, 0]
    torch.testing.assert_close(layer.weights, expected, rtol=0, atol=1e-6)
    assert layer.note == "every query has keys of its own: numbers of keys are no positions"
    assert layer.kind == "unknown"


@pytest.mark.parametrize("way", [_by_matrices, _by_einsum])
@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("length", [4, 6])
@pytest.mark.parametrize("declares", [0, 4])
def test_so_are_they_where_heads_have_more_features_than_came_in(
    way: Callable[[Tensor], Tensor], batch: int, length: int, declares: int
) -> None:
    x = torch.randn(batch, length, 16)
    (layer,) = (
        AttentionExtractor(Written(lambda x: way(x.repeat(1, 1, 2)), declares))
        .get_attention(x)
        .layers
    )
    q, k = near(x.repeat(1, 1, 2))
    scores = torch.einsum("bhnd,bhnkd->bhnk", q, k)
    assert layer.weights.shape == scores.shape
    assert "keys of its own" in layer.note


@pytest.mark.parametrize("batch", [1, 2, 4, 8])
@pytest.mark.parametrize("length", [1, 4, 6, 8])
@pytest.mark.parametrize("declares", [0, 8])
def test_one_query_for_each_sequence_has_no_keys_of_its_own(
    batch: int, length: int, declares: int
) -> None:
    def pooling(x: Tensor) -> Tensor:
        k = heads(x, 8)
        return merged(weights_of(k[:, :, :1], k) @ k)

    x = torch.randn(batch, length, 32)
    k = heads(x, 8)
    (layer,) = AttentionExtractor(Written(pooling, declares)).get_attention(x).layers
    torch.testing.assert_close(layer.weights, weights_of(k[:, :, :1], k), rtol=0, atol=1e-6)
    assert "keys of its own" not in layer.note


def test_so_are_keys_that_are_gathered_by_their_scores() -> None:
    def best(x: Tensor) -> Tensor:
        q = heads(x, 4)
        at = (q @ q.mT).topk(3, -1).indices[..., None].expand(-1, -1, -1, -1, 4)
        k = q[:, :, None].expand(-1, -1, 6, -1, -1).gather(3, at)
        return merged((weights_of(q[:, :, :, None], k) @ k)[:, :, :, 0])

    x = torch.randn(2, 6, 16)
    (layer,) = AttentionExtractor(Written(best, 4)).get_attention(x).layers
    assert layer.weights.shape == (2, 4, 6, 3)
    assert "keys of its own" in layer.note
