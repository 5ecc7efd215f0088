"""Query and key of one shape, multiplied element by element: each query has keys of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attncheck import AttentionExtractor, CaptureError
from tests.capture.handwritten import Written, heads, merged, require, weights_of
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


def test_so_are_they_where_they_are_raised_and_added_up() -> None:
    def attend(x: Tensor) -> Tensor:
        q = heads(x, 4)
        out, total = torch.zeros_like(q), torch.zeros(())
        for shift in SHIFTS:
            near = q.roll(shift, 2)
            raised = summed(q, near).exp().unsqueeze(-1)
            out, total = out + raised * near, total + raised
        return merged(out / total)

    x = torch.randn(2, 6, 16)
    require(Written(attend, 4), (x,), neighbours(heads(x, 4), by_einsum), note=OWN)


Parts = tuple[Tensor, Tensor, Tensor, Tensor]
"""Raised scores of the own key, of the others, and the values of both."""


def added(own: Tensor, others: Tensor, value: Tensor, values: Tensor) -> Tensor:
    return (own * value + others @ values) / (own + others.sum(-1, keepdim=True))


def others_first(own: Tensor, others: Tensor, value: Tensor, values: Tensor) -> Tensor:
    out = others @ values + value * own
    return out / (others.sum(-1, keepdim=True) + own)


def divided(own: Tensor, others: Tensor, value: Tensor, values: Tensor) -> Tensor:
    total = own + others.sum(-1, keepdim=True)
    return own / total * value + (others / total) @ values


def raised(q: Tensor, k: Tensor, own: Tensor, *, hidden: bool = True) -> Parts:
    scores = q @ k.mT / 2
    if hidden:
        scores = scores.masked_fill(torch.eye(k.shape[2]).bool(), -torch.inf)
    return own[..., None].exp(), scores.exp(), q, k


@pytest.mark.parametrize("score", [summed, scaled_first, averaged, by_einsum])
@pytest.mark.parametrize("weigh", [added, others_first, divided])
@pytest.mark.parametrize(("batch", "length"), [(1, 5), (2, 6), (4, 4)])
def test_the_own_key_is_put_among_the_others(
    score: Callable[[Tensor, Tensor], Tensor],
    weigh: Callable[..., Tensor],
    batch: int,
    length: int,
) -> None:
    def attend(x: Tensor) -> Tensor:
        q, k = heads(x.flip(-1), 4), heads(x, 4)
        own, others, _, _ = raised(q, k, score(q, k))
        return merged(weigh(own, others, k, k))

    x = torch.randn(batch, length, 16)
    require(Written(attend, 4), (x,), weights_of(heads(x.flip(-1), 4), heads(x, 4)))


@pytest.mark.parametrize("weigh", [added, others_first, divided])
def test_an_own_key_that_is_none_of_the_others_is_an_error(weigh: Callable[..., Tensor]) -> None:
    """What is a position for some is none for others: a memory that all share, and oneself."""

    def attend(x: Tensor) -> Tensor:
        q, memory = heads(x, 4), heads(x[:, :2].tanh(), 4)
        own, others, _, _ = raised(q, memory, summed(q, q.tanh()), hidden=False)
        return merged(weigh(own, others, q, memory))

    layer = nn.TransformerEncoderLayer(WIDTH, 4, 32, batch_first=True)
    model = nn.Sequential(layer, Written(attend, 4))
    with pytest.raises(CaptureError, match="1: its softmax scores a key of each query's own apart"):
        AttentionExtractor(model).get_attention(torch.randn(2, 6, WIDTH))


def test_a_key_that_nothing_tells_of_is_an_error_beside_others() -> None:
    def attend(x: Tensor) -> Tensor:
        q = heads(x, 4)
        return merged(added(*raised(q, q, (q - q.flip(2)).cos().sum(-1))))

    layer = nn.TransformerEncoderLayer(WIDTH, 4, 32, batch_first=True)
    model = nn.Sequential(layer, Written(attend, 4))
    with pytest.raises(CaptureError, match="1: a softmax over query and key was computed"):
        AttentionExtractor(model).get_attention(torch.randn(2, 6, WIDTH))


@pytest.mark.parametrize("first", [False, True])
def test_the_own_key_under_one_softmax_with_others_is_noted(first: bool) -> None:
    def of(x: Tensor) -> tuple[Tensor, Tensor]:
        q = heads(x, 4)
        own, memory = summed(q, q.tanh())[..., None], heads(x[:, :2], 4)
        scores = [own, q @ memory.mT / 2]
        return torch.cat(scores if first else scores[::-1], -1).softmax(-1), memory

    def attend(x: Tensor) -> Tensor:
        weights, memory = of(x)
        own, others = weights.split([1, 2] if first else [2, 1], -1)[:: 1 if first else -1]
        return merged(own * heads(x, 4) + others @ memory)

    x = torch.randn(2, 6, 16)
    require(Written(attend, 4), (x,), of(x)[0], note=OWN)


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


class KernelResidual(nn.Module):
    """A kernel of distances adds to each token, and nothing is divided by its sums."""

    def forward(self, x: Tensor) -> Tensor:
        near = (-torch.cdist(x, x.flip(1))).exp()
        out = x + near @ x
        return out / out.norm(dim=-1, keepdim=True)


class Cosine(nn.Module):
    """A loss of two views, by their cosine."""

    def forward(self, x: Tensor) -> Tensor:
        one, other = x.tanh(), x.sin()
        lengths = (one * one).sum(-1).sqrt() * (other * other).sum(-1).sqrt()
        return (1 - (one * other).sum(-1) / lengths).softmax(-1).mean()


@pytest.mark.parametrize("other", [MaskedMean, AgreementGate, Decay, KernelResidual, Cosine])
def test_such_products_may_be_gates_and_means(other: type[nn.Module]) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 32, batch_first=True)
    maps = AttentionExtractor(nn.Sequential(layer, other())).get_attention(torch.randn(2, 6, WIDTH))
    assert tuple(maps.names) == ("0.self_attn",)


def decayed(x: Tensor) -> Tensor:
    """A recurrence whose gates are products of two projections of one position, as in RWKV."""
    one, other = x.tanh(), x.sigmoid()
    gate = (one * other).sum(-1, keepdim=True)
    above, below = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0, :1])
    found = []
    for at in range(x.shape[1]):
        above = above * 0.9 + gate[:, at].exp() * x[:, at]
        below = below * 0.9 + gate[:, at].exp()
        found.append(above / below)
    return torch.stack(found, 1)


def pooled(x: Tensor) -> Tensor:
    """A mean of the positions, each weighted by a product of its own."""
    above: Tensor | int = 0
    below: Tensor | int = 0
    for at in range(x.shape[1]):
        gate = (x[:, at].tanh() * x[:, at].sigmoid()).sum(-1, keepdim=True).exp()
        above, below = above + gate * x[:, at], below + gate
    return x + (torch.as_tensor(above) / below)[:, None]


def pooled_at_once(x: Tensor) -> Tensor:
    """The same, of one product."""
    one, other = x.tanh(), x.sigmoid()
    gate = (one * other).sum(-1, keepdim=True).exp()
    above: Tensor | int = 0
    below: Tensor | int = 0
    for at in range(x.shape[1]):
        above, below = above + gate[:, at] * x[:, at], below + gate[:, at]
    return x + (torch.as_tensor(above) / below)[:, None]


@pytest.mark.parametrize("gated", [decayed, pooled, pooled_at_once])
def test_gates_of_each_position_s_own_are_no_attention(gated: Callable[[Tensor], Tensor]) -> None:
    model = Written(gated, 4)
    with pytest.raises(CaptureError, match="captured no attention in"):
        AttentionExtractor(model).get_attention(torch.randn(2, 6, 16))
