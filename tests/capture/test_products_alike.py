"""Query and key of one shape, multiplied element by element: each query has keys of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attncheck import AttentionExtractor
from tests.capture.handwritten import Written, heads, merged, require
from tests.capture.plain_torch.negative_cases import WIDTH

OWN = "every query has keys of its own: numbers of keys are no positions"
SHIFTS = (-1, 0, 1)


def summed(q: Tensor, k: Tensor) -> Tensor:
    return (q * k).sum(-1) / 2


def scaled_first(q: Tensor, k: Tensor) -> Tensor:
    return (q * k * 0.5).sum(-1)


def averaged(q: Tensor, k: Tensor) -> Tensor:
    return torch.mean(torch.mul(q, k), dim=-1) * 2


def by_einsum(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("bhnd,bhnd->bhn", q, k) / 2


def features_first(q: Tensor, k: Tensor) -> Tensor:
    return (q.movedim(-1, 1) * k.movedim(-1, 1)).sum(1) / 2


def stacked(weights: Tensor, v: Tensor) -> Tensor:
    near = torch.stack([v.roll(shift, 2) for shift in SHIFTS], 3)
    return (weights[..., None] * near).sum(3)


def added_up(weights: Tensor, v: Tensor) -> Tensor:
    return sum(weights[..., i : i + 1] * v.roll(shift, 2) for i, shift in enumerate(SHIFTS))


def by_matrices(weights: Tensor, v: Tensor) -> Tensor:
    near = torch.stack([v.roll(shift, 2) for shift in SHIFTS], 3)
    return (weights.unsqueeze(-2) @ near).squeeze(-2)


def neighbours(q: Tensor, score: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return torch.stack([score(q, q.roll(shift, 2)) for shift in SHIFTS], -1).softmax(-1)


@pytest.mark.parametrize("score", [summed, scaled_first, averaged, by_einsum, features_first])
@pytest.mark.parametrize("weigh", [stacked, added_up, by_matrices])
@pytest.mark.parametrize(("batch", "length"), [(1, 5), (2, 6), (4, 4)])
@pytest.mark.parametrize("declares", [0, 4])
def test_rolled_keys_are_neighbours(
    score: Callable[[Tensor, Tensor], Tensor],
    weigh: Callable[[Tensor, Tensor], Tensor],
    batch: int,
    length: int,
    declares: int,
) -> None:
    def attend(x: Tensor) -> Tensor:
        q = heads(x, 4)
        return merged(weigh(neighbours(q, score), q))

    x = torch.randn(batch, length, 16)
    expected = neighbours(heads(x, 4), by_einsum)
    require(Written(attend, declares), (x,), expected, note=OWN)


class MaskedMean(nn.Module):
    """Means of the tokens that a mask as wide as they are shows, of several layers, weighed."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.score = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        shown = (x[..., :1] > 0).float().expand_as(x)
        means = torch.stack([(layer(x) * shown).sum(1) for layer in self.layers], 1)
        return (self.score(means).softmax(1) * means.tanh()).sum(1)


class AgreementGate(nn.Module):
    """Each token is scaled by how well two maps of it agree."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        agreement = (self.one(x) * self.other(x)).sum(-1, keepdim=True)
        return x * torch.sigmoid(agreement) + x * agreement.softmax(1)


class Decay(nn.Module):
    """A state that is kept by a share which query and key of each token give."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        kept = (-(self.one(x) * self.other(x)).sum(-1, keepdim=True).abs()).exp()
        state, states = torch.zeros_like(x[:, 0]), []
        for share, token in zip(kept.unbind(1), x.unbind(1), strict=True):
            state = share * state + (1 - share) * token
            states.append(state)
        return torch.stack(states, 1)


class Cosine(nn.Module):
    """A loss of two views, by their cosine."""

    def forward(self, x: Tensor) -> Tensor:
        one, other = x.tanh(), x.sin()
        lengths = (one * one).sum(-1).sqrt() * (other * other).sum(-1).sqrt()
        return (1 - (one * other).sum(-1) / lengths).softmax(-1).mean()


@pytest.mark.parametrize("other", [MaskedMean, AgreementGate, Decay, Cosine])
def test_such_products_may_be_gates_and_means(other: type[nn.Module]) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 32, batch_first=True)
    maps = AttentionExtractor(nn.Sequential(layer, other())).get_attention(torch.randn(2, 6, WIDTH))
    assert tuple(maps.names) == ("0.self_attn",)
