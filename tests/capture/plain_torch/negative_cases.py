"""Modules with a softmax, a product or a name that makes them look like attention: none is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 16


class Router(nn.Module):
    """Mixture of experts: a softmax over experts weighs their outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.gate = nn.Linear(WIDTH, 4)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-2)
        return (weights[..., None, :] @ outputs).squeeze(-2)


class TopRouter(Router):
    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = F.softmax(self.gate(x), dim=-1).topk(2)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-2)
        picked = outputs.gather(-2, chosen[..., None].expand(*chosen.shape, WIDTH))
        return torch.einsum("bnk,bnkd->bnd", weights, picked)


class SelfAttentionPooling(nn.Module):
    """Pools by a softmax over positions of a linear score."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(x).softmax(1).transpose(1, 2) @ x


class AdditivePooling(SelfAttentionPooling):
    def forward(self, x: Tensor) -> Tensor:
        return (self.score(torch.tanh(x)).softmax(1) * x).sum(1)


class BilinearGate(nn.Module):
    """A bilinear form of two features of each token, and a softmax over what it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.form = nn.Bilinear(WIDTH, WIDTH, 5)
        self.experts = nn.Parameter(torch.randn(5, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        summary = x.mean(1, keepdim=True).expand_as(x)
        return self.form(x, summary).softmax(-1) @ self.experts


class LinearAttention(nn.Module):
    """Softmax of query and of key apart, multiplied by associativity: there are no weights."""

    def forward(self, x: Tensor) -> Tensor:
        query, key = x.softmax(-1), x.softmax(-2)
        return query @ (key.transpose(1, 2) @ x)


class FeatureMapAttention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        query, key = F.elu(x) + 1, F.elu(x) + 1
        raised = query @ (key.transpose(1, 2) @ x)
        return raised / (query @ key.sum(1, keepdim=True).transpose(1, 2))


class SoftmaxFreeAttention(nn.Module):
    """Squared ReLU in place of the softmax."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x @ x.transpose(1, 2)).square() @ x / x.shape[1]


class SigmoidAttention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x @ x.transpose(1, 2)) @ x


class Classifier(nn.Module):
    """A softmax over similarities that nothing is multiplied with, as in CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return (F.normalize(x[:, 0]) @ F.normalize(x[:, 1]).T).softmax(-1)


class SoftLabels(nn.Module):
    """Probabilities of classes times the embeddings of the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, 10)
        self.embeddings = nn.Embedding(10, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x).softmax(-1) @ self.embeddings.weight


class Gumbel(SoftLabels):
    def forward(self, x: Tensor) -> Tensor:
        return F.gumbel_softmax(self.head(x), tau=0.5) @ self.embeddings.weight


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.attention(x.mean(1, keepdim=True)).softmax(-1)


class GatedUnit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.gate(x))


class Mixer(nn.Module):
    """Mixes tokens by a learned, softmax-normalised matrix: no key is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.mixing.softmax(-1) @ x


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cell(x)[0]
        return out


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attention = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.self_attention(x.transpose(1, 2))
        return out.transpose(1, 2)


class IntegralRegression(nn.Module):
    """Expected coordinate of a heat map: a softmax times constants."""

    def forward(self, x: Tensor) -> Tensor:
        heat = (x @ x.transpose(1, 2)).flatten(1).softmax(-1)
        return heat @ torch.arange(36.0)[:, None]


class Contrastive(nn.Module):
    """Cross entropy over a similarity matrix."""

    def forward(self, x: Tensor) -> Tensor:
        scores = x[:, 0] @ x[:, 1].T
        return F.cross_entropy(scores, torch.arange(len(x)))


def on(module: Callable[[], nn.Module]) -> Callable[[], tuple[nn.Module, tuple[Any, ...]]]:
    def make() -> tuple[nn.Module, tuple[Any, ...]]:
        torch.manual_seed(0)
        return module(), (torch.randn(2, 6, WIDTH),)

    return make


NEGATIVE = {
    module.__name__: on(module)
    for module in (
        *(Router, TopRouter, SelfAttentionPooling, AdditivePooling, BilinearGate),
        LinearAttention,
        *(FeatureMapAttention, SoftmaxFreeAttention, SigmoidAttention, Classifier, SoftLabels),
        *(Gumbel, SqueezeExcite, GatedUnit, Mixer, Recurrent, Convolution, IntegralRegression),
        *(Contrastive,),
    )
}
