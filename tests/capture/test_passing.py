"""What a capture does not look at: it must cost little, and nothing may be missed by it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attncheck import AttentionExtractor
from attncheck.capture.follow.traces import Trace, Traces
from attncheck.capture.recorders.functions import is_plain
from attncheck.capture.shared import called


class OwnSoftmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.mixing = nn.Parameter(torch.randn(8, 8))

    def scores(self, x: Tensor) -> Tensor:
        query, key = (layer(x) for layer in self.projections[:2])
        return query @ self.mixing @ key.transpose(-1, -2)

    def forward(self, x: Tensor) -> Tensor:
        first, second = (layer(x) for layer in self.projections[2:])
        self.weights = self.scores(x).softmax(-1)
        return self.weights @ first + (self.weights * 1.0).clone() @ second


class BothWays(OwnSoftmax):
    """Two softmaxes of the same scores, the second begun when the first was reported."""

    def forward(self, x: Tensor) -> Tensor:
        scores = self.scores(x)
        there = scores.softmax(-1) @ self.projections[2](x)
        self.back = scores.transpose(-1, -2).softmax(-1)
        return there + self.back @ self.projections[3](x)


def test_weights_that_multiply_two_values_are_reported_once() -> None:
    model = OwnSoftmax()
    maps = AttentionExtractor(model).get_attention(torch.randn(2, 5, 8))
    assert len(maps) == 1
    assert torch.equal(maps[0][:, 0], model.weights)


def test_what_else_comes_of_the_same_scores_is_followed_to_its_end() -> None:
    model = BothWays()
    maps = AttentionExtractor(model).get_attention(torch.randn(2, 5, 8))
    assert len(maps) == 2
    assert torch.equal(maps[1][:, 0], model.back)


def test_what_a_reported_softmax_gave_is_known_and_not_under_way() -> None:
    traces, weights, scores = Traces(), torch.rand(3), torch.rand(3)
    traces[scores], traces[weights] = Trace("scores"), Trace("weights", softmax=7)
    assert traces.under_way == {id(weights), id(scores)}
    traces.settle(7)
    assert traces.under_way == {id(scores)}
    later = weights + 1
    traces[later] = Trace("weights", softmax=7)
    del scores
    assert traces
    assert traces[weights] is not None
    assert not traces.under_way


def test_plain_classes_and_their_doubles_in_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.activations import NewGELUActivation
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm
    from transformers.pytorch_utils import Conv1D

    assert all(map(is_plain, (nn.Linear, Conv1D, NewGELUActivation, LlamaRMSNorm)))
    assert not any(map(is_plain, (LlamaAttention, transformers.GPT2Model, nn.Bilinear)))


def test_a_listener_hears_of_its_own_modules_only() -> None:
    heard: Counter[Any] = Counter()
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with called([model, model[1]], lambda m, *_: heard.update([m]), model, lambda: None):
        model(torch.ones(1, 2))
    assert heard == {model: 1, model[1]: 1}


@pytest.mark.parametrize("size", [2, 32])
def test_weights_that_are_made_at_once_are_compared_as_they_are_held(size: int) -> None:
    class Sharp(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)

    x = torch.randn(2, 3, 4, size)
    with AttentionExtractor(model := Sharp()) as extractor:
        output = model(x)
    assert (extractor.maps.layers[0].query_key is None) == (size == 32)
    assert torch.allclose(extractor.maps[0] @ x, output, atol=1e-6)
