"""Calls that wait until batch and heads are told are kept as they were, and in their order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncheck import AttentionExtractor
from attncheck.capture.copies import compact_copy
from tests.capture.handwritten import Written, fused, heads, merged, require, weights_of


def test_layers_keep_their_order_where_one_waits_for_the_other() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            q = x.unflatten(-1, (4, 4)).permute(2, 0, 1, 3)
            first = fused(*[q.flatten(0, 1)] * 3)
            second = fused(*[q.transpose(0, 1)] * 3)
            told = first.view(4, 2, 7, 4).permute(1, 2, 0, 3).flatten(2)
            return told + second.transpose(1, 2).flatten(2)

    x = torch.randn(2, 7, 16)
    maps = AttentionExtractor(Two()).get_attention(x)
    assert [layer.index for layer in maps.layers] == [0, 1]
    torch.testing.assert_close(maps[0], maps[1], rtol=0, atol=1e-6)
    last = AttentionExtractor(Two(), layers=[-1]).get_attention(x)
    assert [layer.index for layer in last.layers] == [1]


@pytest.mark.parametrize("batch", [2, 4])
@pytest.mark.parametrize("what", ["weights", "q", "k", "v", "mask"])
def test_what_is_overwritten_while_a_call_waits_is_kept_as_it_was(what: str, batch: int) -> None:
    def overwriting(x: Tensor) -> Tensor:
        q, k, v = (heads(x, 4).contiguous() for _ in range(3))
        mask = torch.ones(5, 5).tril().bool()
        if what == "weights":
            weights = weights_of(q, k)
            out = weights @ v
            weights.zero_()
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask)
            {"q": q, "k": k, "v": v, "mask": mask}[what].zero_()
        return merged(out)

    x = torch.randn(batch, 5, 16)
    q = heads(x, 4)
    causal = (q @ q.mT / 2).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf).softmax(-1)
    expected = weights_of(q, q) if what == "weights" else causal
    require(Written(overwriting, declares=4), (x,), expected)


def untold(x: Tensor) -> Tensor:
    q = heads(x, 4).flatten(0, 1)
    return x + 0 * fused(q, q, q).sum()


@pytest.mark.parametrize("what", ["out", "weights"])
def test_what_is_overwritten_behind_a_call_that_waits_is_kept_too(what: str) -> None:
    def overwriting(x: Tensor) -> Tensor:
        q = heads(x, 4)
        weights = weights_of(q, q)
        out = fused(q, q, q) if what == "out" else weights @ q
        (out if what == "out" else weights).mul_(0.5)
        return merged(out)

    x = torch.randn(2, 5, 16)
    q = heads(x, 4)
    model = nn.Sequential(Written(untold), Written(overwriting, declares=4))
    layers = AttentionExtractor(model).get_attention(x).layers
    for layer in layers:
        torch.testing.assert_close(layer.weights, weights_of(q, q), rtol=0, atol=1e-6)


def test_layers_do_not_wait_for_one_that_nothing_tells() -> None:
    def attending(x: Tensor) -> Tensor:
        q = heads(x, 4)
        return merged(weights_of(q, q) @ q)

    seen: list[int] = []
    parts = [Written(untold), *(Written(attending, declares=4) for _ in range(8)), nn.Identity()]
    model = nn.Sequential(*parts)
    handed: list[int] = []
    model[-1].register_forward_hook(lambda *_: handed.append(len(seen)))
    with AttentionExtractor(model, on_layer=lambda layer: seen.append(layer.index)):
        model(torch.randn(2, 5, 16))
    assert handed[0] >= 5
    assert seen == list(range(9))


def test_an_expanded_mask_is_copied_as_small_as_it_is() -> None:
    mask = torch.ones(1, 1, 5, 5).tril().bool().expand(3, 4, 5, 5)
    copy = compact_copy(mask)
    assert copy.untyped_storage().nbytes() == 25
    assert torch.equal(copy, mask)
    assert copy.data_ptr() != mask.data_ptr()


@pytest.mark.parametrize("first", [False, True])
def test_order_is_told_under_transforms_of_functions(first: bool) -> None:
    def attending(x: Tensor) -> Tensor:
        q = heads(x, 4).transpose(0, 1) if first else heads(x, 4)
        flat = q.flatten(0, 1)
        out = (weights_of(flat, flat) @ flat).view(q.shape)
        return merged(out.transpose(0, 1) if first else out)

    model, x = Written(attending, declares=4), torch.randn(2, 5, 16)
    with AttentionExtractor(model) as extractor:
        torch.func.grad(lambda y: model(y).sum())(x)
    q = heads(x, 4)
    torch.testing.assert_close(extractor.maps[0], weights_of(q, q), rtol=0, atol=1e-6)


def test_an_output_is_followed_no_further_than_it_has_to_be() -> None:
    """Whoever keeps it, for a residual, would make every later function slower."""
    kept: list[Tensor] = []
    seen: list[int] = []

    def attending(x: Tensor) -> Tensor:
        q = heads(x, 4)
        kept.append(fused(q, q, q))
        return merged(kept[-1])

    with AttentionExtractor(Written(attending)) as extractor:
        extractor.model(torch.randn(2, 5, 16))
        mode: Any = torch._C._get_function_stack_at(torch._C._len_torch_function_stack() - 1)
        seen.append(mode._follows(kept[0]))
    assert seen == [False]


@pytest.mark.parametrize("first", [False, True])
def test_a_mask_of_ones_own_that_is_overwritten_is_kept(first: bool) -> None:
    def attending(x: Tensor) -> Tensor:
        q = heads(x, 4).transpose(0, 1) if first else heads(x, 4)
        later = torch.ones(5, 5).triu(2).bool()
        out = (q @ q.mT / 2).masked_fill(later, -torch.inf).softmax(-1) @ q
        later.zero_()
        return merged(out.transpose(0, 1) if first else out)

    model = Written(attending, declares=4)
    layer = AttentionExtractor(model).get_attention(torch.randn(4, 5, 16)).layers[0]
    assert torch.equal(layer.visible()[0, 0], torch.ones(5, 5).tril(1).bool())


def test_a_mask_that_is_overwritten_behind_a_call_that_waits_is_kept() -> None:
    def reusing(x: Tensor) -> Tensor:
        q, mask = heads(x, 4), torch.zeros(5, 5)
        first = fused(*[q.transpose(0, 1).flatten(0, 1)] * 3)
        second = F.scaled_dot_product_attention(q, q, q, mask)
        mask.fill_(-torch.inf)
        return merged(first.unflatten(0, (4, -1)).transpose(0, 1) + second)

    x = torch.randn(2, 5, 16)
    q = heads(x, 4)
    require(Written(reusing, declares=4), (x,), weights_of(q, q), weights_of(q, q))
