"""What becomes of the output of attention tells which axis was that of the heads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attncheck import AttentionExtractor
from tests.capture.handwritten import Attend, Written, fused, heads, merged, require, weights_of


def test_branches_beside_each_other_are_no_heads() -> None:
    def branches(x: Tensor) -> Tensor:
        q = heads(torch.cat([x, x.flip(1)]), 4)
        return merged(torch.cat(fused(q, q, q).chunk(2, 0), -1))

    x = torch.randn(2, 5, 16)
    q = heads(torch.cat([x, x.flip(1)]), 4)
    require(Written(branches, declares=4), (x,), weights_of(q, q), note="nothing tells")


W = torch.nn.Parameter(torch.randn(4, 4, 16))
ENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "einsum": lambda out: torch.einsum("hbnd,hde->bne", out, W),
    "sum of projected heads": lambda out: (out @ W[:, None]).sum(0),
    "sum of heads": lambda out: out.sum(0),
    "projected, then merged": lambda out: (out @ W[0, :, :4]).permute(1, 2, 0, 3).flatten(2),
    "first token": lambda out: out[:, :, 0].transpose(0, 1).flatten(1),
    "stacked": lambda out: torch.stack(list(out), 2).flatten(2),
    "heads changed": lambda out: torch.cat([F.relu(head) for head in out], -1),
    "mean over positions": lambda out: out.mean(2).transpose(0, 1).flatten(1),
    "all at once": lambda out: out.permute(1, 2, 0, 3).flatten(1),
}


@pytest.mark.parametrize("end", ENDS)
def test_many_endings_tell_which_axis_was_of_heads(end: str) -> None:
    def attending(x: Tensor) -> Tensor:
        q = heads(x, 4).transpose(0, 1)
        return ENDS[end](fused(q, q, q))

    x = torch.randn(4, 6, 16)
    require(Written(attending, declares=4), (x,), weights_of(heads(x, 4), heads(x, 4)))


@pytest.mark.parametrize("batch", [4, 2])
@pytest.mark.parametrize("averages", [False, True])
def test_an_ending_that_tells_nothing_is_noted(averages: bool, batch: int) -> None:
    """Features ahead of heads, or a mean that may be over heads or over sequences."""

    def attending(x: Tensor) -> Tensor:
        q = heads(x, 4).transpose(0, 1)
        out = fused(q, q, q)
        return out.mean(0) if averages else torch.cat([head.mT for head in out], 1)

    x = torch.randn(batch, 6, 16)
    q = heads(x, 4) if batch == 2 else heads(x, 4).transpose(0, 1)  # 4 came in side by side
    require(Written(attending), (x,), weights_of(q, q), note="nothing tells")


@pytest.mark.parametrize("layout", ["plain", "folded", "heads first"])
def test_views_that_are_merged_are_no_heads(layout: str) -> None:
    """As many heads came in side by side as a module declares: no more can be merged."""

    def views(x: Tensor) -> Tensor:
        q = heads(x, 4)
        if layout == "folded":
            out = fused(*[q.flatten(0, 1)] * 3).unflatten(0, (len(x), 4))
        else:
            first = layout == "heads first"
            out = fused(*[q.transpose(0, 1) if first else q] * 3)
            out = out.transpose(0, 1) if first else out
        return out.unflatten(0, (2, -1)).permute(1, 3, 0, 2, 4).flatten(2)

    x = torch.randn(4 if layout == "plain" else 2, 5, 16)
    layer = AttentionExtractor(Written(views, declares=4)).get_attention(x).layers[0]
    q = heads(x, 4)
    torch.testing.assert_close(layer.weights, weights_of(q, q), rtol=0, atol=1e-6)


def test_a_mean_over_sequences_is_none_over_heads() -> None:
    def views(x: Tensor) -> Tensor:
        q = heads(x, 4)
        return fused(q, q, q).mean(0).transpose(0, 1).flatten(1)

    x = torch.randn(4, 5, 16)
    q = heads(x, 4)
    layer = AttentionExtractor(Written(views, declares=4)).get_attention(x).layers[0]
    torch.testing.assert_close(layer.weights, weights_of(q, q), rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2])
def test_positions_and_features_in_one_tell_nothing_yet(steps: int) -> None:
    def attending(x: Tensor) -> Tensor:
        q = heads(x, 4).flatten(0, 1)
        out = fused(q, q, q)
        return (out.flatten(1) if steps == 2 else out).reshape(len(x), -1)

    x = torch.randn(3, 5, 16)
    require(Written(attending, declares=4), (x,), weights_of(heads(x, 4), heads(x, 4)))


@pytest.mark.parametrize("batch", [2, 4])
def test_heads_in_pairs_that_a_kernel_attends_with_stay_heads(batch: int) -> None:
    def differing(x: Tensor) -> Tensor:
        q = heads(x, 8)
        out = fused(q, q, heads(x, 4).repeat_interleave(2, 1)).unflatten(1, (4, 2))
        return merged(out[:, :, 0] - 0.3 * out[:, :, 1])

    x = torch.randn(batch, 5, 32)
    require(Written(differing, declares=4), (x,), weights_of(heads(x, 8), heads(x, 8)))


def test_two_outputs_that_are_subtracted_are_told_together() -> None:
    def differing(x: Tensor) -> Tensor:
        q = heads(x, 4).transpose(0, 1)
        out = fused(q, q, q) - 0.3 * fused(q.flip(2), q, q)
        return out.permute(1, 2, 0, 3).flatten(2)

    x = torch.randn(4, 6, 16)
    q = heads(x, 4)
    require(Written(differing, declares=4), (x,), weights_of(q, q), weights_of(q.flip(2), q))


@pytest.mark.parametrize("rows", [3, 4])
@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("order", [(0, 3, 1, 2, 4), (3, 0, 1, 2, 4), (0, 1, 3, 2, 4)])
def test_rows_of_an_image_are_no_heads(order: tuple[int, ...], batch: int, rows: int) -> None:
    def axial(x: Tensor) -> Tensor:
        q = x.unflatten(-1, (4, 4)).permute(order)
        return fused(q, q, q).permute([order.index(axis) for axis in range(5)]).flatten(-2)

    x = torch.randn(batch, rows, 5, 16)
    q = heads(x.flatten(0, 1), 4)
    found = weights_of(q, q).unflatten(0, (batch, rows))
    layer = AttentionExtractor(Written(axial, declares=4)).get_attention(x).layers[0]
    assert layer.weights.shape == (batch * rows, 4, 5, 5)
    torch.testing.assert_close(layer.weights, found.flatten(0, 1), rtol=0, atol=1e-6)


LOOPS: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor], tuple[Tensor, ...]]]] = {
    "mask first": (lambda mask, x: x, lambda x: (torch.ones(6, 6), x)),
    "image": (lambda x: x.flatten(2).mT, lambda x: (x.mT.unflatten(2, (2, 3)),)),
    "length first": (lambda x: x.transpose(0, 1), lambda x: (x.transpose(0, 1),)),
    "a token more": (lambda x: torch.cat([x[:, :1], x], 1), lambda x: (x,)),
}


@pytest.mark.parametrize("batch", [4, 8])
@pytest.mark.parametrize("stacks", [False, True])
@pytest.mark.parametrize("name", LOOPS)
def test_heads_of_a_loop_are_told_whatever_came_in(name: str, stacks: bool, batch: int) -> None:
    read, give = LOOPS[name]

    def looping(*args: Tensor) -> Tensor:
        parts = [fused(q, q, q) for q in read(*args).split(4, -1)]
        return torch.stack(parts, 2).flatten(2) if stacks else torch.cat(parts, -1)

    args = give(torch.randn(batch, 6, 16))
    expected = [weights_of(q, q)[:, None] for q in read(*args).split(4, -1)]
    require(Written(looping, declares=4), args, *expected)


def folded(x: Tensor) -> Tensor:
    return heads(x, 4).flatten(0, 1)


def unfolded(out: Tensor, batch: int) -> Tensor:
    return merged(out.unflatten(0, (batch, 4)))


def test_the_output_tells_how_many_heads_there_are() -> None:
    x, context = torch.randn(4, 6, 16), torch.randn(4, 3, 16)
    require(
        Written(lambda c, x: unfolded(fused(folded(x), folded(c), folded(c)), 4)),
        (context, x),
        weights_of(heads(x, 4), heads(context, 4)),
    )
    longer = torch.cat([x[:, :1], x], 1)
    require(
        Written(lambda x: unfolded(fused(*[folded(torch.cat([x[:, :1], x], 1))] * 3), 4)),
        (x,),
        weights_of(heads(longer, 4), heads(longer, 4)),
    )


def test_heads_in_pairs_stay_heads() -> None:
    """Two softmaxes for each head, unfolded before one is subtracted from the other."""

    def differing(x: Tensor) -> Tensor:
        weights = weights_of(heads(x, 8), heads(x, 8)).unflatten(1, (4, 2))
        return merged((weights[:, :, 0] - 0.3 * weights[:, :, 1]) @ heads(x, 4))

    x = torch.randn(2, 5, 16)
    require(Written(differing, declares=4), (x,), weights_of(heads(x, 8), heads(x, 8)))


@pytest.mark.parametrize("spelling", ["bhij,bjhd->bihd", "bhij,bjhd->hbid"])
def test_an_output_with_axes_in_another_order_is_not_misread(spelling: str) -> None:
    """As many heads as positions, and as sequences: shapes alone do not tell axes."""

    def attending(x: Tensor) -> Tensor:
        q = x.unflatten(-1, (4, 4))
        weights = (torch.einsum("bihd,bjhd->bhij", q, q) / 2).softmax(-1)
        out = torch.einsum(spelling, weights, q)
        return out.flatten(2) if spelling.endswith("bihd") else out.permute(1, 2, 0, 3).flatten(2)

    x = torch.randn(4, 4, 16)
    q = heads(x, 4)
    layer = AttentionExtractor(Written(attending)).get_attention(x).layers[0]
    torch.testing.assert_close(layer.weights, weights_of(q, q), rtol=0, atol=1e-6)


@pytest.mark.parametrize("joins", [torch.stack, torch.cat])
@pytest.mark.parametrize("attend", [fused, lambda q, k, v: weights_of(q, k) @ v])
def test_sequences_attended_to_one_by_one_keep_their_heads(
    joins: Callable[..., Tensor], attend: Attend
) -> None:
    def looping(x: Tensor) -> Tensor:
        parts = [attend(*[heads(one[None], 4)[0]] * 3) for one in x]
        return merged(joins(parts).view(len(x), 4, 7, -1))

    x = torch.randn(3, 7, 24)
    require(Written(looping, declares=4), (x,), *[weights_of(*[heads(y[None], 4)] * 2) for y in x])


@pytest.mark.parametrize("how", ["stacked and summed", "beside each other"])
@pytest.mark.parametrize("declares", [0, 4])
def test_two_outputs_that_are_joined_keep_their_heads(how: str, declares: int) -> None:
    def joining(x: Tensor) -> Tensor:
        q = heads(torch.cat([x, x[..., :8]], -1), 4).flatten(0, 1)  # no features of 4 heads came in
        both = [fused(q, q, q), fused(q.flip(1), q, q)]
        out = torch.stack(both).sum(0) if how == "stacked and summed" else torch.cat(both, -1)
        return merged(out.view(len(x), 4, 7, -1))

    x = torch.randn(2, 7, 16)
    q = heads(torch.cat([x, x[..., :8]], -1), 4)
    require(Written(joining, declares), (x,), weights_of(q, q), weights_of(q.flip(2), q))


@pytest.mark.parametrize("wide", [False, True])
def test_views_that_are_summed_are_no_heads_where_others_are_merged(wide: bool) -> None:
    def views(x: Tensor) -> Tensor:
        return torch.cat([x, x[..., :8]], -1) if wide else x

    def summing(x: Tensor) -> Tensor:
        q = views(x).unflatten(-1, (4, -1)).transpose(2, 3)
        return merged(fused(q, q, q).sum(1))

    x = torch.randn(2, 4, 7, 16)  # four views
    q = heads(views(x).flatten(0, 1), 4)
    require(Written(summing, declares=4), (x,), weights_of(q, q))


def test_heads_that_are_projected_one_by_one_are_one_head_each() -> None:
    def each(*args: Tensor) -> Tensor:
        q = heads(args[0], 4)
        layer = torch.nn.functional.linear
        return sum((layer(fused(*[q[:, h]] * 3), W[h].T) for h in range(4)), torch.zeros(()))

    x = torch.randn(4, 6, 16)  # as many sequences as heads
    q = heads(x, 4)
    require(Written(each, declares=4), (x,), *[weights_of(q, q)[:, h : h + 1] for h in range(4)])


def test_queries_in_chunks_are_told_together() -> None:
    def chunks(x: Tensor) -> Tensor:
        q = heads(x, 4).flatten(0, 1)
        return unfolded(torch.cat([fused(c, q, q) for c in q.split(3, 1)], 1), len(x))

    x = torch.randn(4, 6, 16)
    weights = weights_of(heads(x, 4), heads(x, 4))
    require(Written(chunks), (x,), weights[:, :, :3], weights[:, :, 3:])


@pytest.mark.parametrize("shape", [(5, 6, 16), (1, 5, 6, 16)])
def test_a_guess_of_one_sequence_or_one_head_is_noted_too(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    layer = AttentionExtractor(Written(lambda x: fused(x, x, x))).get_attention(x).layers[0]
    assert "nothing tells" in layer.note


@pytest.mark.parametrize("first", [False, True])
def test_one_sequence_that_is_picked_tells_the_heads_of_all(first: bool) -> None:
    def picking(x: Tensor) -> Tensor:
        q = heads(x, 4).transpose(0, 1) if first else heads(x, 4)
        out = fused(*[q.flatten(0, 1)] * 3).view(q.shape)
        return (out[:, 0] if first else out[0]).transpose(0, 1).flatten(1)

    x = torch.randn(4, 6, 16)
    require(Written(picking, declares=4), (x,), weights_of(heads(x, 4), heads(x, 4)))


@pytest.mark.parametrize("in_one_axis", [False, True])
def test_a_sum_alone_tells_no_heads(in_one_axis: bool) -> None:
    """It may be over heads or over views, where nothing says how many heads there are."""

    def summing(x: Tensor) -> Tensor:
        out = fused(*[x.flatten(0, 1)] * 3).view(x.shape) if in_one_axis else fused(x, x, x)
        return out.sum(1)

    layer = AttentionExtractor(Written(summing)).get_attention(torch.randn(2, 3, 6, 16)).layers[0]
    assert "nothing tells" in layer.note


@pytest.mark.parametrize("reduce", [Tensor.sum, Tensor.mean, Tensor.amax])
def test_views_that_are_reduced_in_one_axis_with_heads_are_none(
    reduce: Callable[[Tensor, int], Tensor],
) -> None:
    def views(x: Tensor) -> Tensor:
        q = x.unflatten(-1, (4, -1)).transpose(2, 3)
        return merged(reduce(fused(*[q.flatten(0, 2)] * 3).view(q.shape), 1))

    x = torch.randn(2, 3, 6, 16)
    q = heads(x.flatten(0, 1), 4)
    require(Written(views, declares=4), (x,), weights_of(q, q))
