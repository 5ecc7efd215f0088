"""A mask bug that lives in one backend only is seen, because nobody switches the backend."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncheck import AttentionExtractor


class Leaky(nn.Module):
    """Decoder attention whose mask goes missing under sdpa.

    Eager adds a causal mask. Under sdpa the mask is dropped for the kernel's own causal flag, and
    that flag is forgotten.
    """

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend
        self.projections = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.projections(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        if self.backend == "sdpa":
            return F.scaled_dot_product_attention(q, k, v)
        mask = torch.full((x.shape[1], x.shape[1]), -math.inf).triu(1)
        return torch.softmax(q @ k.mT / 2 + mask, dim=-1) @ v


def test_future_mass_is_seen_in_the_backend_that_leaks() -> None:
    torch.manual_seed(0)
    healthy, leaky = Leaky("eager"), Leaky("sdpa")
    leaky.load_state_dict(healthy.state_dict())
    x = torch.randn(1, 8, 16)
    masses = {
        model.backend: AttentionExtractor(model).get_attention(x).layers[0]
        for model in (healthy, leaky)
    }
    assert masses["eager"].weights.triu(1).sum() == 0
    assert masses["eager"].causal
    assert masses["sdpa"].weights.triu(1).sum(-1).max() > 0.5
    assert not masses["sdpa"].causal
    assert masses["sdpa"].status == "exact"
