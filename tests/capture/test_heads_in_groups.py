"""Heads that share a key, or are computed group by group: told by the output."""

from __future__ import annotations

import pytest
import torch
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


@pytest.mark.parametrize(
    ("layout", "count", "groups", "length", "declares"),
    [
        *[("bgrij", 8, 2, 8, 8), ("bgrij", 4, 2, 4, 4), ("bgrij", 4, 4, 4, 4)],
        *[("bigrj", 8, 2, 4, 0), ("bigrj", 4, 1, 4, 4), ("brgij", 4, 2, 4, 4)],
        *[("bgirj", 4, 2, 2, 0), ("bgrij", 4, 2, 6, 4), ("bgrij", 4, 2, 6, 0)],
    ],
)
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_grouped_heads_as_many_as_tokens_are_told_by_the_output(
    layout: str, count: int, groups: int, length: int, declares: int, batch: int
) -> None:
    size = 16 // count

    def grouping(x: Tensor) -> Tensor:
        q = x.unflatten(-1, (groups, -1, size))
        k = x[..., : groups * size].unflatten(-1, (groups, size))
        scores = torch.einsum(f"bigrd,bjgd->{layout}", q, k) / size**0.5
        return torch.einsum(f"{layout},bjgd->bigrd", scores.softmax(-1), k).flatten(2)

    x = torch.randn(batch, length, 16)
    k = heads(x[..., : groups * size], groups).repeat_interleave(count // groups, 1)
    require(Written(grouping, declares), (x,), weights_of(heads(x, count), k))


@pytest.mark.parametrize("length", [4, 6])
@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("declares", [0, 4])
@pytest.mark.parametrize("last", [False, True])
def test_heads_that_share_a_key_are_told_by_the_output(
    length: int, batch: int, declares: int, last: bool
) -> None:
    def sharing(x: Tensor) -> Tensor:
        q, k = heads(x, 4), x[..., :SIZE]
        q = q[:, :, -1:] if last else q
        weights = (torch.einsum("bhid,bjd->bhij", q, k) / 2).softmax(-1)
        return merged(torch.einsum("bhij,bjd->bhid", weights, k))

    x = torch.randn(batch, length, 16)
    q = heads(x, 4)[:, :, -1:] if last else heads(x, 4)
    require(Written(sharing, declares), (x,), weights_of(q, x[:, None, :, :SIZE]))


@pytest.mark.parametrize("length", [4, 6])
@pytest.mark.parametrize("declares", [0, 4])
@pytest.mark.parametrize("sums", [False, True])
def test_heads_that_share_a_latent_key_are_told_by_the_output(
    length: int, declares: int, sums: bool
) -> None:
    """Keys and values are projected on the query's side, as DeepSeek's latent attention does."""
    up = nn.Parameter(torch.randn(4, SIZE, 16))

    def absorbed(x: Tensor) -> Tensor:
        q = torch.einsum("bshd,hdc->bshc", x.unflatten(-1, (4, SIZE)), up)
        weights = (torch.einsum("bshc,btc->bsht", q, x) / 4).softmax(-1)
        out = torch.einsum("bsht,btc->bshc", weights, x)
        if sums:
            return torch.einsum("bshc,hdc->bsd", out, up)
        return torch.einsum("bshc,hdc->bshd", out, up).flatten(2)

    x = torch.randn(2, length, 16)
    q = torch.einsum("bshd,hdc->bhsc", x.unflatten(-1, (4, SIZE)), up)
    require(Written(absorbed, declares), (x,), weights_of(q, x[:, None]))


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("scales", [False, True])
def test_both_softmaxes_of_a_head_are_heads(
    batch: int, count: int, inner: bool, scales: bool
) -> None:
    def differing(x: Tensor) -> Tensor:
        q = heads(x, 2 * count)
        weights = weights_of(q, q) * (2 if scales else 1)
        weights = weights.unflatten(1, (count, 2) if inner else (2, count))
        first, second = weights.unbind(2 if inner else 1)
        return merged((first - 0.3 * second) @ heads(x, count))

    x = torch.randn(batch, 6, 16)
    q = heads(x, 2 * count)
    layer = AttentionExtractor(Written(differing, count)).get_attention(x).layers[0]
    torch.testing.assert_close(layer.weights, weights_of(q, q), rtol=0, atol=1e-6)


@pytest.mark.parametrize("attend", [fused, written])
@pytest.mark.parametrize("declares", [0, 4])
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
@pytest.mark.parametrize("where", ["in the batch", "in front of it", "behind it"])
def test_heads_in_two_groups_are_told_where_these_are_joined(
    attend: Attend, declares: int, batch: int, where: str
) -> None:
    def halves(x: Tensor) -> Tensor:
        made = []
        for q in heads(x, 4).chunk(2, 1):
            if where == "in the batch":
                made.append(attend(*[q.flatten(0, 1)] * 3).view(q.shape))
            elif where == "behind it":
                made.append(attend(q, q, q))
            else:
                made.append(attend(*[q.transpose(0, 1)] * 3))
        if where == "in front of it":
            return torch.cat(made, 0).permute(1, 2, 0, 3).flatten(2)
        return merged(torch.cat(made, 1))

    x = torch.randn(batch, 6, 16)
    expected = weights_of(heads(x, 4), heads(x, 4))
    require(Written(halves, declares), (x,), expected[:, :2], expected[:, 2:])


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
@pytest.mark.parametrize(("length", "beside"), [(2, 0), (4, 0), (4, 2), (6, 0)])
@pytest.mark.parametrize("declares", [0, 4])
def test_groups_of_heads_one_by_one_are_told_from_as_many_tokens(
    batch: int, length: int, beside: int, declares: int
) -> None:
    """Two heads at a time share a key; there may be keys of other tokens beside their own."""

    def groups(x: Tensor) -> Tensor:
        made = []
        memory = torch.cat([x, x[:, :beside]], 1)
        for q, k in zip(heads(x, 4).chunk(2, 1), heads(memory, 4)[:, ::2].chunk(2, 1), strict=True):
            made.append(weights_of(q, k) @ k)
        return merged(torch.cat(made, 1))

    x = torch.randn(batch, length, 16)
    keys = heads(torch.cat([x, x[:, :beside]], 1), 4)[:, ::2]
    expected = weights_of(heads(x, 4), keys.repeat_interleave(2, 1))
    require(Written(groups, declares), (x,), *expected.chunk(2, 1))


@pytest.mark.parametrize("counts", [[1, 3], [3, 1], [1, 1, 2], [1, 1, 1, 1]])
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_as_many_sequences_as_declared_heads_are_no_heads(counts: list[int], batch: int) -> None:
    def parts(x: Tensor) -> Tensor:
        each = heads(x, 4).transpose(0, 1).split(counts)
        return torch.cat([written(q, q, q) for q in each]).permute(1, 2, 0, 3).flatten(2)

    x = torch.randn(batch, 6, 16)
    expected = weights_of(heads(x, 4), heads(x, 4)).split(counts, 1)
    require(Written(parts, declares=4), (x,), *expected)


@pytest.mark.parametrize("attend", [fused, written])
@pytest.mark.parametrize("declares", [0, 4])
@pytest.mark.parametrize("batch", [1, 2])
def test_attention_among_heads_is_none_of_one_query(
    attend: Attend, declares: int, batch: int
) -> None:
    """A model that forgot to turn positions and heads round: heads are in the place of queries."""

    def forgetting(x: Tensor) -> Tensor:
        q = x.unflatten(-1, (4, SIZE))
        return attend(q, q, q).flatten(2)

    layer = (
        AttentionExtractor(Written(forgetting, declares))
        .get_attention(torch.randn(batch, 6, 16))
        .layers[0]
    )
    assert layer.weights.shape[2:] == (4, 4)


@pytest.mark.parametrize("length", [5, 6, 8])
def test_one_head_of_one_sequence_at_a_time_is_no_guess(length: int) -> None:
    def looping(x: Tensor) -> Tensor:
        each = (torch.cat([written(q, q, q) for q in one.split(SIZE, -1)], -1) for one in x)
        return torch.stack(list(each))

    x = torch.randn(2, length, 16)
    q = heads(x, 4)
    expected = [weights_of(q[b, h], q[b, h])[None, None] for b in range(2) for h in range(4)]
    require(Written(looping, declares=4), (x,), *expected)


class GroupsOfOne(nn.Module):
    """Grouped queries, one query head for each key head, in an order of its own."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key = nn.Linear(16, 16), nn.Linear(16, 16)
        self.seen = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        batch, n, _ = x.shape
        query = self.query(x).view(batch, n, self.num_heads, 1, -1).permute(1, 3, 2, 0, 4)
        key = self.key(x).view(batch, n, self.num_heads, -1).permute(2, 0, 1, 3)
        weights = torch.einsum("irgbd,gbjd->rjbgi", query, key).softmax(1)
        self.seen = weights.detach().permute(2, 3, 0, 4, 1).flatten(1, 2)
        return torch.einsum("rjbgi,gbjd->bigrd", weights, key).flatten(2)


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("num_heads", [2, 4])
@pytest.mark.parametrize("length", [3, 6])
def test_groups_of_one(batch: int, num_heads: int, length: int) -> None:
    model = GroupsOfOne(num_heads)
    maps = AttentionExtractor(model).get_attention(ONE[:1, :length].expand(batch, -1, -1))
    assert torch.equal(maps[0], model.seen)
