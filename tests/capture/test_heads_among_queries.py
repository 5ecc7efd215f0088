"""Heads in the axis of the queries: told from them by the output."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncheck import AttentionExtractor
from tests.capture.handwritten import (
    ONE,
    Attend,
    Written,
    fused,
    heads,
    merged,
    require,
    weights_of,
    written,
)

SIZE = 4


def _tokens_first(x: Tensor, attend: Attend) -> Tensor:
    q, k = x.unflatten(-1, (4, SIZE)).flatten(1, 2), x[..., :SIZE]
    return attend(q, k, k).reshape(x.shape)


def _heads_first(x: Tensor, attend: Attend) -> Tensor:
    q, k = heads(x, 4).flatten(1, 2), x[..., :SIZE]
    return merged(attend(q, k, k).view(len(x), 4, -1, SIZE))


def _in_chunks(x: Tensor, attend: Attend) -> Tensor:
    q, k = heads(x, 4).flatten(1, 2), x[..., :SIZE]
    return torch.cat(attend(q, k, k).chunk(4, 1), -1)


def _with_an_axis_of_one_head(x: Tensor, attend: Attend) -> Tensor:
    q, k = heads(x, 4).flatten(1, 2)[:, None], x[:, None, :, :SIZE]
    return merged(attend(q, k, k).view(len(x), 4, -1, SIZE))


def _changed_on_the_way(x: Tensor, attend: Attend) -> Tensor:
    q, k = heads(x, 4).flatten(1, 2), x[..., :SIZE]
    out = F.dropout(attend(q, k, k) * 2, 0.0).unflatten(1, (4, -1))
    return out.transpose(1, 2).contiguous().view(x.shape)


def _the_last_token(x: Tensor, attend: Attend) -> Tensor:
    q, k = x.unflatten(-1, (4, SIZE)).flatten(1, 2), x[..., :SIZE]
    return attend(q, k, k).unflatten(1, (-1, 4))[:, -1].flatten(1)


FOLDED = (
    *(_tokens_first, _heads_first, _in_chunks, _with_an_axis_of_one_head, _changed_on_the_way),
    _the_last_token,
)


@pytest.mark.parametrize("attend", [fused, written])
@pytest.mark.parametrize("way", FOLDED)
@pytest.mark.parametrize(("batch", "length"), [(2, 6), (1, 6), (4, 6), (2, 4), (4, 4)])
@pytest.mark.parametrize("declares", [0, 4])
def test_heads_in_the_axis_of_the_queries_are_told_from_them(
    way: Callable[[Tensor, Attend], Tensor], attend: Attend, batch: int, length: int, declares: int
) -> None:
    x = torch.randn(batch, length, 16)
    expected = weights_of(heads(x, 4), x[:, None, :, :SIZE])
    require(Written(lambda x: way(x, attend), declares), (x,), expected)


@pytest.mark.parametrize("attend", [fused, written])
@pytest.mark.parametrize(("batch", "length", "n_key"), [(2, 6, 24), (1, 6, 24), (2, 4, 3)])
@pytest.mark.parametrize("declares", [0, 4])
def test_keys_of_another_sequence_are_no_heads(
    attend: Attend, batch: int, length: int, n_key: int, declares: int
) -> None:
    def crossing(x: Tensor, context: Tensor) -> Tensor:
        k = context[..., :SIZE]
        return attend(x.unflatten(-1, (4, SIZE)).flatten(1, 2), k, k).view(x.shape)

    x, context = torch.randn(batch, length, 16), torch.randn(batch, n_key, 16)
    expected = weights_of(heads(x, 4), context[:, None, :, :SIZE])
    require(Written(crossing, declares), (x, context), expected)


def test_scores_that_are_viewed_for_a_mask_keep_it() -> None:
    """Tokens first, heads within: as StarCoder has them."""
    mask = torch.ones(6, 6).tril().bool()

    def attending(x: Tensor) -> Tensor:
        q, k = x.reshape(len(x), -1, SIZE), x[..., :SIZE]
        scores = (torch.bmm(q, k.mT) / 2).view(-1, 6, 4, 6)
        weights = scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
        return torch.bmm(weights.view(-1, 24, 6), k).view(x.shape)

    x = torch.randn(2, 6, 16)
    scores = heads(x, 4) @ x[:, None, :, :SIZE].mT / 2
    layer = AttentionExtractor(Written(attending, declares=4)).get_attention(x).layers[0]
    expected = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    torch.testing.assert_close(layer.weights, expected, rtol=0, atol=1e-6)
    assert torch.equal(layer.visible().expand_as(expected), mask.expand_as(expected))


@pytest.mark.parametrize("causal", [False, True])
def test_a_mask_of_a_kernel_lies_where_the_heads_are(causal: bool) -> None:
    mask = torch.ones(24, 6).tril().bool() if causal else torch.rand(24, 6) > 0.3
    mask[:, 0] = True

    def attending(x: Tensor) -> Tensor:
        q, k = heads(x, 4).flatten(1, 2), x[..., :SIZE]
        options = {"is_causal": True} if causal else {"attn_mask": mask}
        out = F.scaled_dot_product_attention(q, k, k, **options)
        return merged(out.view(len(x), 4, 6, SIZE))

    x = torch.randn(2, 6, 16)
    scores = heads(x, 4) @ x[:, None, :, :SIZE].mT / 2
    expected = scores.masked_fill(~mask.view(4, 6, 6), -torch.inf).softmax(-1)
    require(Written(attending, declares=4), (x,), expected)


@pytest.mark.parametrize("attend", [fused, written])
@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("declares", [0, 4])
def test_heads_of_a_group_are_told_from_the_queries(
    attend: Attend, inner: bool, batch: int, declares: int
) -> None:
    """The number of a head is its group's, then its own; or the other way round."""

    def grouping(x: Tensor) -> Tensor:
        q = heads(x, 4).unflatten(1, (2, 2))
        q = (q if inner else q.transpose(1, 2)).flatten(2, 3)
        k = heads(x[..., :8], 2)
        out = attend(q, k, k).unflatten(2, (2, -1))
        return merged((out if inner else out.transpose(1, 2)).flatten(1, 2))

    x = torch.randn(batch, 6, 16)
    k = heads(x[..., :8], 2)
    key = k.repeat_interleave(2, 1) if inner else k.repeat(1, 2, 1, 1)
    require(Written(grouping, declares), (x,), weights_of(heads(x, 4), key))


@pytest.mark.parametrize("attend", [fused, written])
@pytest.mark.parametrize("length", [6, 4])
@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("unbinds", [False, True])
def test_one_query_of_all_heads_is_no_sequence(
    attend: Attend, length: int, batch: int, unbinds: bool
) -> None:
    def decoding(x: Tensor) -> Tensor:
        q, k = x[:, -1].view(-1, 4, SIZE), x[..., :SIZE]
        out = attend(q, k, k)
        return torch.cat(out.unbind(1), -1) if unbinds else out.flatten(1)

    x = torch.randn(batch, length, 16)
    expected = weights_of(heads(x[:, -1:], 4), x[:, None, :, :SIZE])
    require(Written(decoding, declares=4), (x,), expected)


def test_all_that_tells_no_heads_of_one_query_is_noted() -> None:
    x = torch.randn(1, 6, 16)
    model = Written(lambda x: fused(x[:, -1].view(-1, 4, SIZE), *[x[..., :SIZE]] * 2), declares=4)
    (layer,) = AttentionExtractor(model).get_attention(x).layers
    assert "nothing tells" in layer.note


PROJECTION = nn.Linear(SIZE, 16)
POSITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "patches merged": lambda out: out.unflatten(1, (-1, 2)).flatten(2),
    "flattened": lambda out: out.flatten(1),
    "patches merged behind a layer": lambda out: PROJECTION(out).unflatten(1, (-1, 2)).flatten(2),
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("end", POSITIONS)
def test_positions_that_are_merged_are_no_heads(end: str, batch: int) -> None:
    x = torch.randn(batch, 6, SIZE)
    model = Written(lambda x: POSITIONS[end](fused(x, x, x)))
    (layer,) = AttentionExtractor(model).get_attention(x).layers
    if end != "flattened" or batch == 1:
        torch.testing.assert_close(layer.weights, weights_of(x, x)[:, None], rtol=0, atol=1e-6)
    assert bool(layer.note) == (end == "flattened" and batch > 1)


class OneQuery(nn.Module):
    """Four heads of single vectors share a key; there are as many sequences as heads."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(16, 16), nn.Linear(16, 4)
        self.seen = torch.empty(0)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        query, key = self.query(x).view(-1, 4, 4), self.key(memory)
        weights = (query @ key.mT).softmax(-1)
        self.seen = weights.detach()[:, :, None]
        return (weights @ key).flatten(1)


@pytest.mark.parametrize("batch", [1, 2, 4, 6])
def test_as_many_sequences_as_heads(batch: int) -> None:
    model = OneQuery()
    maps = AttentionExtractor(model).get_attention(
        ONE[0, :1].expand(batch, -1), ONE[:1].expand(batch, -1, -1)
    )
    assert torch.equal(maps[0], model.seen)
