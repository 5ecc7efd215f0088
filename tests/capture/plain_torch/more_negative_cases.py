"""More modules that weigh things by a softmax, or multiply by activations, and do not attend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.capture.plain_torch.negative_cases import WIDTH, on


class HighwayGate(nn.Module):
    """Two activations, mixed by a gate that is their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        share = torch.sigmoid(self.gate(x + x.mean(1, keepdim=True)))
        return share * x + (1 - share) * x.tanh()


class FilmNorm(nn.Module):
    """Scale and shift by a condition, as diffusion transformers have it."""

    def __init__(self) -> None:
        super().__init__()
        self.to_both = nn.Linear(WIDTH, 2 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.to_both(x.mean(1)).chunk(2, dim=-1)
        out: Tensor = self.out(x * (1 + scale[:, None]) + shift[:, None])
        return out.softmax(-1) * x


class SoftMixture(nn.Module):
    """Every expert's output times its share, after a condition was added to all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 6)  # as many experts as tokens
        self.experts = nn.Parameter(torch.randn(6, WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        share = self.gate(x + x.mean(1, keepdim=True)).softmax(-1)
        outputs = torch.einsum("bnd,edf->bnef", x, self.experts)
        return (share[..., None] * outputs).sum(2)


class GatedPooling(nn.Module):
    """Gated pooling over a bag of instances: tanh and sigmoid multiplied, one linear score."""

    def __init__(self) -> None:
        super().__init__()
        self.tanh, self.sigmoid = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8)
        self.score = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.score(self.tanh(x).tanh() * self.sigmoid(x).sigmoid())
        return scores.transpose(1, 2).softmax(-1) @ x


class PositionedPooling(nn.Module):
    """Pooling of tokens to which sinusoidal positions were added."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("positions", torch.arange(6.0)[None, :, None].sin().repeat(1, 1, 16))
        self.score = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.positions
        return (self.score(x.tanh()).softmax(1) * x).sum(1)


class Distillation(nn.Module):
    """Cross entropy between two softmaxes of similarities."""

    def forward(self, x: Tensor) -> Tensor:
        teacher = (x @ x.mT / 0.1).softmax(-1)
        student = (x @ x.roll(1, 1).mT).log_softmax(-1)
        return -(teacher * student).sum(-1).mean()


class InfoNCE(nn.Module):
    """Log of the share of the right pairs, by a temperature."""

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.einsum("bnd,bmd->bnm", F.normalize(x, dim=-1), F.normalize(x, dim=-1))
        return (scores / 0.07).softmax(-1).diagonal(dim1=1, dim2=2).log().mean()


class Sparsemax(nn.Module):
    """A projection onto the simplex by sorting, no exponential at all."""

    def forward(self, x: Tensor) -> Tensor:
        scores = x @ x.mT
        ordered, _ = scores.sort(-1, descending=True)
        ranks = torch.arange(1, scores.shape[-1] + 1)
        support = 1 + ranks * ordered > ordered.cumsum(-1)
        count = support.sum(-1, keepdim=True)
        threshold = ((ordered * support).sum(-1, keepdim=True) - 1) / count
        return (scores - threshold).clamp(min=0) @ x


class Performer(nn.Module):
    """Random positive features: exponentials of query and key apart."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("directions", torch.randn(WIDTH, 32))

    def features(self, x: Tensor) -> Tensor:
        return torch.exp(x @ self.directions / 4 - x.square().sum(-1, keepdim=True) / 32)

    def forward(self, x: Tensor) -> Tensor:
        query, key = self.features(x), self.features(x.flip(1))
        mixed = query @ (key.mT @ x)
        return mixed / (query @ key.sum(1, keepdim=True).mT)


class GumbelChoice(nn.Module):
    """One expert for each token, chosen by noise, straight through."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(WIDTH, 6)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        choice = F.gumbel_softmax(self.score(x), hard=True)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-2)
        return (choice[..., None, :] @ outputs).squeeze(-2)


class SoftArgmax(nn.Module):
    """Key points: where, on average, each channel of a picture is brightest."""

    def forward(self, x: Tensor) -> Tensor:
        heat = x.mT.unflatten(-1, (2, 3)).flatten(2).softmax(-1)
        places = torch.stack(torch.meshgrid(torch.arange(2.0), torch.arange(3.0), indexing="ij"))
        return heat @ places.flatten(1).T


class RandomField(nn.Module):
    """The forward algorithm of a chain: log-sum-exps over transitions."""

    def __init__(self) -> None:
        super().__init__()
        self.transitions = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        alpha = x[:, 0]
        for step in x.unbind(1)[1:]:
            alpha = torch.logsumexp(alpha[:, :, None] + self.transitions, dim=1) + step
        return alpha.softmax(-1)


class Capsules(nn.Module):
    """Routing by agreement: shares over capsules, raised by products with their outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.votes = nn.Parameter(torch.randn(5, 6, WIDTH, 8) / 4)

    def forward(self, x: Tensor) -> Tensor:
        votes = torch.einsum("bid,oidf->biof", x, self.votes)
        raised = torch.zeros(votes.shape[:3])
        for _ in range(3):
            out = torch.einsum("bio,biof->bof", raised.softmax(-1), votes).tanh()
            raised = raised + torch.einsum("biof,bof->bio", votes, out)
        return out


class SelectiveKernel(nn.Module):
    """A softmax over two branches, for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, k, padding=k // 2) for k in (3, 5))
        self.squeeze = nn.Linear(WIDTH, 8)
        self.shares = nn.ModuleList(nn.Linear(8, WIDTH) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        held = torch.stack([branch(x.mT) for branch in self.branches], dim=1)
        squeezed = self.squeeze(held.sum(1).mean(-1))
        shares = torch.stack([to(squeezed) for to in self.shares], dim=1).softmax(1)
        return (held * shares[..., None]).sum(1)


class Codebook(nn.Module):
    """Soft look-up of a learned codebook, by distance."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(9, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return (-torch.cdist(x, self.codes.expand(2, -1, -1))).softmax(-1) @ self.codes


class ClusterCentres(nn.Module):
    """Soft k-means: each centre is a mean of the tokens assigned to it."""

    def forward(self, x: Tensor) -> Tensor:
        shares = (x @ x[:, :3].mT).softmax(-1)
        return shares.mT @ x / shares.sum(1)[..., None]


class Bilinear(nn.Module):
    """Pairwise interactions, summed up: a product of activations without any softmax."""

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, :, None] * x[:, None]).sum(-1).relu() @ x


MORE_NEGATIVE = {
    module.__name__: on(module)
    for module in (
        *(HighwayGate, FilmNorm, SoftMixture, GatedPooling, PositionedPooling, Distillation),
        *(InfoNCE, Sparsemax, Performer, GumbelChoice, SoftArgmax, RandomField, Capsules),
        *(SelectiveKernel, Codebook, ClusterCentres, Bilinear),
    )
}
