"""Query and key that meet element by element, and how far such pairs are followed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attncheck import AttentionExtractor
from attncheck.capture.follow.softmax import SoftmaxWatcher
from attncheck.capture.follow.steps import Step
from tests.capture.handwritten import Written
from tests.capture.reference import Heads, close, reference_weights

N = 6
X = torch.randn(2, N, 16, generator=torch.Generator().manual_seed(13))
NEAR = (torch.arange(N)[:, None] + torch.arange(-2, 1)).clamp(0)


def last_query(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = ((q[:, :, -1:] * k).sum(-1) / 2).softmax(-1)
    return (weights[..., None] * v).sum(2, keepdim=True) + v


def last_query_before_heads(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    weights = (q[:, -1:] * k).sum(-1).mul(0.5).softmax(1)
    return ((weights[..., None] * v).sum(1, keepdim=True) + v).transpose(1, 2)


@pytest.mark.parametrize("attend", [last_query, last_query_before_heads])
def test_one_query_times_its_keys(attend: Callable[..., Tensor]) -> None:
    module = Heads(attend)
    (weights,) = AttentionExtractor(module).get_attention(X)
    assert close(weights, reference_weights(*module.last)[:, :, -1:])


def test_one_query_before_the_batch() -> None:
    """As in PyTorch's tutorial of a chatbot: everything has its length first."""

    def forward(x: Tensor) -> Tensor:
        outputs = x.transpose(0, 1)
        scores = torch.sum(outputs[-1:] * outputs, dim=2).t()
        return x + scores.softmax(1)[:, None].bmm(outputs.transpose(0, 1))

    (weights,) = AttentionExtractor(Written(forward)).get_attention(X)
    torch.testing.assert_close(weights[:, 0], (X[:, -1:] @ X.mT).softmax(-1))


def test_products_along_an_axis() -> None:
    def attend(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (torch.linalg.vecdot(q[:, :, :, None], k[:, :, None]) / 2).softmax(-1) @ v

    module = Heads(attend)
    (weights,) = AttentionExtractor(module).get_attention(X)
    assert close(weights, reference_weights(*module.last))


def window(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = ((q[:, :, :, None] * k[:, :, NEAR]).sum(-1) / 2).softmax(-1)
    return (weights[..., None] * v[:, :, NEAR]).sum(3)


def best(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    chosen = (q @ k.mT).topk(3, -1).indices[..., None].expand(-1, -1, -1, -1, 4)
    k, v = (t[:, :, None].expand(-1, -1, N, -1, -1).gather(3, chosen) for t in (k, v))
    weights = ((q[:, :, :, None] * k).sum(-1) / 2).softmax(-1)
    return (weights[..., None] * v).sum(3)


@pytest.mark.parametrize("attend", [window, best])
def test_keys_of_its_own_for_every_query_are_noted(attend: Callable[..., Tensor]) -> None:
    (layer,) = AttentionExtractor(Heads(attend)).get_attention(X).layers
    assert layer.weights.shape == (2, 4, N, 3)
    assert "every query has keys of its own" in layer.note


def test_scores_of_two_layers_are_scores() -> None:
    score = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))

    def attend(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = score(torch.tanh(q[:, :, :, None] + k[:, :, None])).squeeze(-1)
        return scores.masked_fill(torch.ones(N, N).triu(1).bool(), -1e9).softmax(-1) @ v

    (layer,) = AttentionExtractor(Heads(attend)).get_attention(X).layers
    assert layer.weights.shape == (2, 4, N, N)
    assert layer.causal


class Graph(nn.Module):
    """Dense graph attention, whose pairs are written out in one axis of all of them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.heads = how, nn.Linear(16, 16, bias=False)
        self.score = nn.Linear(8 if how == "cat" else 4, 1, bias=False)

    def scores(self, one: Tensor, other: Tensor) -> Tensor:
        pairs = torch.cat([one, other], -1) if self.how == "cat" else one + other
        return nn.functional.leaky_relu(self.score(pairs), 0.2).squeeze(-1)

    def values(self, x: Tensor) -> Tensor:
        values: Tensor = self.heads(x).unflatten(-1, (4, 4))  # (batch, node, head, size)
        return values

    def forward(self, x: Tensor) -> Tensor:
        g = self.values(x)
        each, all_ = g.repeat_interleave(N, dim=1), g.repeat(1, N, 1, 1)
        scores = self.scores(each, all_).view(-1, N, N, 4)
        return torch.einsum("bijh,bjhf->bihf", scores.softmax(2), g).flatten(2)


@pytest.mark.parametrize("how", ["cat", "add"])
@pytest.mark.parametrize("batch", [1, 2])
def test_pairs_that_repeats_write_out(how: str, batch: int) -> None:
    model = Graph(how)
    (layer,) = AttentionExtractor(model).get_attention(X[:batch]).layers
    with torch.no_grad():
        g = model.values(X[:batch])
        one, other = torch.broadcast_tensors(g[:, :, None], g[:, None])
        expected = model.scores(one, other).softmax(2).permute(0, 3, 1, 2)
    torch.testing.assert_close(layer.weights, expected)


def test_one_query_that_is_repeated_beside_its_keys() -> None:
    layer = nn.Linear(16, 1)

    def forward(x: Tensor) -> Tensor:
        query = x[:, -1:].repeat(1, N, 1)
        return (layer(torch.tanh(query + x)).softmax(1) * x).sum(1)

    (weights,) = AttentionExtractor(Written(forward)).get_attention(X)
    with torch.no_grad():
        expected = layer(torch.tanh(X[:, -1:] + X)).softmax(1)[..., 0]
    torch.testing.assert_close(weights[:, 0, 0], expected)


class Recurrent(nn.Module):
    """Adds what a recurrence makes of a sequence to attention over it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Heads(lambda m, q, k, v: (q @ k.mT / 2).softmax(-1) @ v)
        self.step = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        state = x[:, 0]
        for t in range(x.shape[1]):
            state = torch.tanh(self.step(x[:, t]) + self.step(state))
        return x + self.attention(x) + state[:, None]


def test_a_sequence_beside_its_mean_is_not_followed_on_and_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stages: list[str] = []
    after = SoftmaxWatcher._after

    def counted(watcher: SoftmaxWatcher, step: Step) -> None:
        stages.append(step.trace.stage)
        after(watcher, step)

    monkeypatch.setattr(SoftmaxWatcher, "_after", counted)
    model = nn.Sequential(*(Recurrent() for _ in range(3)))
    x = torch.randn(2, 64, 16)
    assert len(AttentionExtractor(model).get_attention(x)) == 3
    assert 0 < stages.count("pairs") < 2 * 64
    assert stages.count("scores") < 20
