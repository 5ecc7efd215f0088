"""Parts of a row that one sum divides: of the same keys, or divided in the logarithm; odd axes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attncheck import AttentionExtractor
from tests.capture.reference import Heads

X = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(5))


def _captured(attend: object) -> tuple[Tensor, Tensor]:
    """Map that was captured, and the scores of its call."""
    model = Heads(attend).eval()  # type: ignore[arg-type]
    layers = AttentionExtractor(model).get_attention(X).layers
    assert len(layers) == 1
    query, key = model.last
    return layers[0].weights, query @ key.mT / 2


def local_and_earlier(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal within pairs of positions, and whole earlier pairs: two masks over the same keys."""
    pair = torch.arange(6) // 2
    own = (pair[:, None] == pair) & torch.ones(6, 6, dtype=torch.bool).tril()
    scores = q @ k.mT / 2
    near, far = (
        scores.masked_fill(~seen, -torch.inf).exp() for seen in (own, pair[:, None] > pair)
    )
    total = near.sum(-1, keepdim=True) + far.sum(-1, keepdim=True)
    return near / total @ v + far / total @ v


def joint_logsumexp(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    first, second = q @ k[:, :, :2].mT / 2, q @ k[:, :, 2:].mT / 2
    total = torch.logaddexp(first.logsumexp(-1, True), second.logsumexp(-1, True))
    return (first - total).exp() @ v[:, :, :2] + (second - total).exp() @ v[:, :, 2:]


def test_parts_of_the_same_keys_are_added() -> None:
    weights, scores = _captured(local_and_earlier)
    seen = torch.ones(6, 6, dtype=torch.bool).tril()
    expected = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    assert torch.allclose(weights, expected, atol=1e-6)


def test_parts_divided_in_the_logarithm_are_put_together() -> None:
    weights, scores = _captured(joint_logsumexp)
    assert torch.allclose(weights, scores.softmax(-1), atol=1e-6)


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
        X[0, :1].expand(batch, -1), X[:1].expand(batch, -1, -1)
    )
    assert torch.equal(maps[0], model.seen)


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
    maps = AttentionExtractor(model).get_attention(X[:1, :length].expand(batch, -1, -1))
    assert torch.equal(maps[0], model.seen)
