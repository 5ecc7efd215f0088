"""The order of batch and heads, whatever other arguments, masks and groups there are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attncheck import AttentionExtractor
from tests.capture.handwritten import Written, fused, heads, merged, require, weights_of

LENGTH = 7


def test_other_arguments_do_not_turn_batch_and_heads_round() -> None:
    """As many queries for each position of the first argument as there are sequences."""
    x, context = torch.randn(2, 4, 32), torch.randn(2, 16, 32)

    def cross(context: Tensor, x: Tensor) -> Tensor:
        return merged(fused(heads(x, 8), heads(context, 8), heads(context, 8)))

    require(Written(cross), (context, x), weights_of(heads(x, 8), heads(context, 8)))
    x = torch.randn(2, 8, 32)
    require(
        Written(lambda mask, x: merged(F.scaled_dot_product_attention(*[heads(x, 8)] * 3, mask))),
        (torch.ones(8, 8).bool(), x),
        weights_of(heads(x, 8), heads(x, 8)),
    )
    x, doubled = (
        torch.randn(2, 5, 8),
        Written(lambda x: merged(fused(*[heads(torch.cat([x, x.flip(1)]), 2)] * 3))),
    )
    q = heads(torch.cat([x, x.flip(1)]), 2)
    require(doubled, (x,), weights_of(q, q))
    image, patch = torch.randn(8, 3, 16, 16), torch.randn(12, 3 * 16)
    patches = F.unfold(image, 4, stride=4).mT @ patch.mT
    q = heads(patches, 3)
    vit = Written(
        lambda image: merged(fused(*[heads(F.unfold(image, 4, stride=4).mT @ patch.mT, 3)] * 3))
    )
    require(vit, (image,), weights_of(q, q))


@pytest.mark.parametrize("mask", [torch.ones(6, 6).bool(), torch.zeros(6, 6)])
def test_a_mask_is_no_sequence(mask: Tensor) -> None:
    x = torch.randn(3, 6, 8)
    model = Written(lambda mask, x: F.scaled_dot_product_attention(x, x, x, mask))
    require(model, (mask, x), weights_of(x, x)[:, None], note="nothing tells")


def test_the_output_of_one_attention_may_be_the_value_of_another() -> None:
    def agents(x: Tensor) -> Tensor:
        q = heads(x, 4)
        agent = q[:, :, :3]
        return merged(weights_of(q, agent) @ fused(agent, q, q))

    x = torch.randn(4, 6, 16)
    q = heads(x, 4)
    agent = q[:, :, :3]
    layers = AttentionExtractor(Written(agents)).get_attention(x).layers
    for layer, weights in zip(layers, (weights_of(agent, q), weights_of(q, agent)), strict=True):
        torch.testing.assert_close(layer.weights, weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch", [4, 2])
@pytest.mark.parametrize("of_heads", [False, True])
def test_a_mask_lies_where_the_heads_are(batch: int, of_heads: bool) -> None:
    """Heads first: a mask of each sequence, or of each head, is turned round with the weights."""
    shown = torch.arange(LENGTH) < torch.arange(LENGTH, 3, -1)[: 4 if of_heads else batch, None]
    mask = shown[:, None, None] if of_heads else shown[None, :, None]

    def attending(x: Tensor) -> Tensor:
        q = heads(x, 4).transpose(0, 1)
        scores = (q @ q.mT).masked_fill(~mask, -torch.inf)
        return merged((scores.softmax(-1) @ q).transpose(0, 1))

    x = torch.randn(batch, LENGTH, 16)
    layer = AttentionExtractor(Written(attending, declares=4)).get_attention(x).layers[0]
    seen = layer.visible().expand(batch, 4, LENGTH, LENGTH)
    assert torch.equal(seen, mask.transpose(0, 1).expand_as(seen))
    assert not layer.weights[~seen].any()


@pytest.mark.parametrize("batch", [1, 2])
def test_a_mask_of_windows_is_kept(batch: int) -> None:
    shown = (torch.rand(3, LENGTH, LENGTH) > 0.4) | torch.eye(LENGTH).bool()

    def windows(x: Tensor) -> Tensor:
        q = heads(x, 4)
        scores = (q @ q.mT).view(batch, 3, 4, LENGTH, LENGTH)
        scores = scores.masked_fill(~shown[None, :, None], -torch.inf)
        return merged(scores.view(-1, 4, LENGTH, LENGTH).softmax(-1) @ q)

    x = torch.randn(batch * 3, LENGTH, 16)
    layer = AttentionExtractor(Written(windows, declares=4)).get_attention(x).layers[0]
    assert torch.equal(layer.visible()[:, 0], shown.repeat(batch, 1, 1))


@pytest.mark.parametrize("spelling", ["b (h g)", "b (g h)"])
@pytest.mark.parametrize("group_first", [False, True])
@pytest.mark.parametrize("declares", [0, 4])
def test_grouped_heads_are_in_the_order_in_which_they_are_merged(
    spelling: str, group_first: bool, declares: int
) -> None:
    outer = spelling == "b (g h)"  # the group is the outer part of a head's number

    def grouping(x: Tensor) -> Tensor:
        q, k = heads(x, 4).unflatten(1, (2, 2)), heads(x, 4)[:, :2]
        turned = outer != group_first
        q, key = (q.transpose(1, 2) if turned else q), k[:, None] if group_first else k[:, :, None]
        spell = "bghqd,bhkd->bghqk" if group_first else "bhgqd,bhkd->bhgqk"
        weights = (torch.einsum(spell, q, k) / 2).softmax(-1)
        out = weights @ key
        return merged((out.transpose(1, 2) if turned else out).flatten(1, 2))

    x = torch.randn(2, 6, 16)
    q, k = heads(x, 4), heads(x, 4)[:, :2]
    key = k.repeat(1, 2, 1, 1) if outer else k.repeat_interleave(2, 1)
    layer = AttentionExtractor(Written(grouping, declares)).get_attention(x).layers[0]
    torch.testing.assert_close(layer.weights, weights_of(q, key), rtol=0, atol=1e-6)
    assert layer.note == ""
