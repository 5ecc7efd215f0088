"""Attention over the edges of a graph raises beside captured attention; what is none does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncheck import AttentionExtractor, CaptureError

NODES, SIZE, HEADS = 7, 16, 2
X = torch.randn(NODES, SIZE, generator=torch.Generator().manual_seed(1))
SOURCE = torch.tensor([0, 1, 2, 3, 4, 5, 6, 0, 2, 4])
TARGET = torch.tensor([1, 2, 3, 4, 5, 6, 0, 3, 5, 0])
GRAPHS = torch.tensor([0, 0, 0, 1, 1, 1, 1])


class Graph(nn.Module):
    """Layers that a graph transformer has beside its attention over all nodes."""

    def __init__(self, local: Callable[[Graph, Tensor], Tensor]) -> None:
        super().__init__()
        self.local = local
        self.q, self.k, self.v = (nn.Linear(SIZE, SIZE) for _ in range(3))
        self.gate, self.two, self.mix = nn.Linear(SIZE, 1), nn.Linear(2 * SIZE, HEADS), nn.GELU()
        self.attend = nn.Parameter(torch.randn(HEADS, SIZE // HEADS))

    def heads(self, x: Tensor) -> Tensor:
        return x.view(-1, HEADS, SIZE // HEADS)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (m(x).view(1, NODES, HEADS, -1).transpose(1, 2) for m in (self.q, self.k, self.v))
        everywhere = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1)
        return everywhere.reshape(NODES, -1).sum() + self.local(self, x).sum()


def normalised(scores: Tensor, index: Tensor, count: int = NODES) -> Tensor:
    """Softmax over the edges of each node, as graph libraries spell it."""
    wide = index.view(-1, *[1] * (scores.ndim - 1)).expand_as(scores)
    empty = scores.new_zeros(count, *scores.shape[1:])
    largest = empty.scatter_reduce(0, wide, scores, "amax", include_self=False)
    raised = (scores - largest.index_select(0, index)).exp()
    return raised / (empty.scatter_add(0, wide, raised).index_select(0, index) + 1e-16)


def collected(messages: Tensor, index: Tensor = TARGET, count: int = NODES) -> Tensor:
    return messages.new_zeros(count, *messages.shape[1:]).index_add_(0, index, messages)


def products(m: Graph, x: Tensor) -> Tensor:
    q, k, v = (m.heads(f(x)) for f in (m.q, m.k, m.v))
    scores = (q[TARGET] * k[SOURCE]).sum(-1) / 8**0.5
    return collected(normalised(scores, TARGET)[..., None] * v[SOURCE])


def of_single_head(m: Graph, x: Tensor) -> Tensor:
    scores = (m.q(x).index_select(0, TARGET) * m.k(x).index_select(0, SOURCE)).sum(-1, keepdim=True)
    return collected(normalised(scores, TARGET) * m.v(x).index_select(0, SOURCE))


def additive(m: Graph, x: Tensor) -> Tensor:
    """Graph attention networks: a number for each node as source, another as target."""
    h = m.heads(m.v(x))
    to, from_ = (h * m.attend).sum(-1), (h * m.attend.flip(0)).sum(-1)
    scores = F.leaky_relu(to[TARGET] + from_[SOURCE], 0.2)
    return collected(normalised(scores, TARGET).unsqueeze(-1) * h[SOURCE])


def additive_of_features(m: Graph, x: Tensor) -> Tensor:
    """Their second version: the sum goes through a nonlinearity before it becomes one number."""
    left, right = m.heads(m.q(x)), m.heads(m.k(x))
    scores = (F.leaky_relu(left[TARGET] + right[SOURCE]) * m.attend).sum(-1)
    return collected(normalised(scores, TARGET).unsqueeze(-1) * right[SOURCE])


def behind_each_other(m: Graph, x: Tensor) -> Tensor:
    """The first paper's spelling: both ends beside each other, then a linear layer."""
    scores = F.leaky_relu(m.two(torch.cat([x[TARGET], x[SOURCE]], -1)))
    return collected(normalised(scores, TARGET)[..., None] * m.heads(m.v(x))[SOURCE])


def divided_at_the_end(m: Graph, x: Tensor) -> Tensor:
    raised = torch.exp((m.q(x)[TARGET] * m.k(x)[SOURCE]).sum(-1))
    summed = torch.zeros(NODES).index_add(0, TARGET, raised)
    return collected(raised[:, None] * m.v(x)[SOURCE]) / summed[:, None]


def by_einsum(m: Graph, x: Tensor) -> Tensor:
    q, k, v = (m.heads(f(x)) for f in (m.q, m.k, m.v))
    weights = normalised((q[TARGET] * k[SOURCE]).sum(-1), TARGET)
    return collected(torch.einsum("eh,ehd->ehd", weights, v[SOURCE]))


@pytest.mark.parametrize(
    "local",
    [products, of_single_head, additive, additive_of_features, behind_each_other,
     divided_at_the_end, by_einsum],
)  # fmt: skip
def test_attention_over_edges_is_told(local: Callable[[Graph, Tensor], Tensor]) -> None:
    model = Graph(local).eval()
    with torch.no_grad():
        plain = model(X)
    with pytest.raises(CaptureError, match="gives no weights over keys"):
        AttentionExtractor(model).get_attention(X)
    kept = AttentionExtractor(model, strict=False)
    with pytest.warns(UserWarning, match="gives no weights over keys"):
        assert torch.equal(kept.watch(X), plain)
    assert len(kept.maps) == 1


def pooling(m: Graph, x: Tensor) -> Tensor:
    """One number for each node; its softmax is over the nodes of a graph."""
    return collected(normalised(m.gate(x), GRAPHS, 2) * x, GRAPHS, 2)


def softmax_aggregation(m: Graph, x: Tensor) -> Tensor:
    """A message's own features say how much it counts."""
    messages = F.relu(m.v(x)[SOURCE])
    return collected(normalised(messages, TARGET) * messages)


def gated(m: Graph, x: Tensor) -> Tensor:
    gates = torch.sigmoid((m.q(x)[TARGET] * m.k(x)[SOURCE]).sum(-1, keepdim=True))
    return collected(gates * m.v(x)[SOURCE])


def distances(m: Graph, x: Tensor) -> Tensor:
    """Gaussians of distances weigh what comes from other atoms, and do not sum to 1."""
    far = (x[TARGET, :3] - x[SOURCE, :3]).square().sum(-1, keepdim=True)
    return collected(torch.exp(-far) * m.v(x)[SOURCE])


def messages(m: Graph, x: Tensor) -> Tensor:
    return collected(m.v(m.mix(m.q(x)[TARGET] + m.k(x)[SOURCE])))


def routed(m: Graph, x: Tensor) -> Tensor:
    """Experts: tokens are picked, weighed by a router's softmax, and put back."""
    weights = m.two(torch.cat([x, x], -1)).softmax(-1)
    chosen = weights.max(-1).values[SOURCE]
    return collected(chosen[:, None] * m.v(x[SOURCE]), SOURCE)


@pytest.mark.parametrize(
    "local", [pooling, softmax_aggregation, gated, distances, messages, routed]
)
def test_what_is_no_attention_is_not_told(local: Callable[[Graph, Tensor], Tensor]) -> None:
    model = Graph(local).eval()
    with torch.no_grad():
        plain = model(X)
    extractor = AttentionExtractor(model)
    assert torch.equal(extractor.watch(X), plain)
    assert len(extractor.maps) == 1
