"""A softmax over the queries makes no rows of weights: it is told, unless rows are made of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attncheck import AttentionExtractor, CaptureError
from tests.capture.reference import Heads

X = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(5))


def plain(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / 2).softmax(-1) @ v


def over_queries(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / 2).softmax(-2) @ v


def keys_first(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (k @ q.mT / 2).softmax(-1).mT @ v


def in_train_mode(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.dropout((q @ k.mT / 2).softmax(2), 0.5, True)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v)


def rows_made_of_it(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Slot attention: keys are shared out, then each query's row is divided by its sum."""
    shared = (q @ k.mT / 2).softmax(-2) + 1e-8
    return (shared / shared.sum(-1, keepdim=True)) @ v


def one_hot(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each key goes to one query; a query without keys has a row of zeros."""
    soft = (q @ k.mT / 2).softmax(-2)
    hard = torch.zeros_like(soft).scatter_(-2, soft.argmax(-2, keepdim=True), 1.0)
    shared = hard - soft.detach() + soft
    return (shared / (shared.sum(-1, keepdim=True) + 1e-6)) @ v


def counted_and_one(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """GroupViT: the sum of a row and 1 divides it, so that few keys count for less."""
    shared = (q @ k.mT / 2).softmax(-2)
    return (shared / (shared.sum(-1, keepdim=True) + 1.0)) @ v


def read_and_written(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A memory that is read, then written to with the same weights."""
    weights = (q @ k.mT / 2).softmax(-1)
    return weights @ v + weights.mT @ q


def written_and_read(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.mT / 2).softmax(-1)
    written = weights.mT @ q
    return weights @ v + written


class Mixer(Heads):
    """No name that tells what it is."""


def _beside_a_plain_one(how: Callable[..., Tensor]) -> nn.Sequential:
    return nn.Sequential(Mixer(plain), Mixer(how)).eval()


@pytest.mark.parametrize("how", [over_queries, keys_first, in_train_mode])
def test_it_is_told(how: Callable[..., Tensor]) -> None:
    with pytest.raises(CaptureError, match=r"1: its softmax .* over the queries: .* rows that sum"):
        AttentionExtractor(_beside_a_plain_one(how)).get_attention(X)
    with pytest.raises(CaptureError, match=r"captured no attention; .*\n.*over the queries"):
        AttentionExtractor(Mixer(how).eval()).get_attention(X)


@pytest.mark.parametrize("how", [rows_made_of_it, one_hot])
def test_rows_that_were_made_of_it_are_no_fault(how: Callable[..., Tensor]) -> None:
    maps = AttentionExtractor(_beside_a_plain_one(how)).get_attention(X)
    assert maps.names[0] == "0"
    for layer in maps.layers:  # the second one may be left out, or be rows
        sums = layer.weights.sum(-1)
        assert bool(((sums - 1).abs().minimum(sums) < 1e-4).all())


def test_keys_shared_out_are_no_attention_where_no_rows_are_made_of_it() -> None:
    maps = AttentionExtractor(_beside_a_plain_one(counted_and_one)).get_attention(X)
    assert maps.names == ("0",)


@pytest.mark.parametrize("how", [read_and_written, written_and_read])
def test_weights_that_are_also_used_the_other_way_round_are_captured(
    how: Callable[..., Tensor],
) -> None:
    maps = AttentionExtractor(_beside_a_plain_one(how)).get_attention(X)
    assert maps.names == ("0", "1")
