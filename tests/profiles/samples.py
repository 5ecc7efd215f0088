"""Batches of attention with tokens and padding, to be cut up and put together again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """A padded batch: layers of weights, token ids, and the mask of real tokens."""

    layers: list[Tensor]
    tokens: Tensor
    mask: Tensor
    causal: bool

    @property
    def batch(self) -> int:
        return self.tokens.shape[0]

    def part(self, elements: list[int]) -> Sample:
        return Sample(
            [layer[elements] for layer in self.layers],
            self.tokens[elements],
            self.mask[elements],
            self.causal,
        )

    def unpadded(self, element: int) -> Sample:
        """One element without its padding."""
        n = int(self.mask[element].sum())
        return Sample(
            [layer[[element], :, :n, :n] for layer in self.layers],
            self.tokens[[element], :n],
            self.mask[[element], :n],
            self.causal,
        )


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    batch, heads = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    n = draw(st.integers(1, 9))
    causal = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    lengths = torch.tensor([draw(st.integers(1, n)) for _ in range(batch - 1)] + [n])
    mask = torch.arange(n) < lengths[:, None]
    hidden = ~mask[:, None, None, :]
    if causal:
        hidden = hidden | torch.ones(n, n).triu(1).bool()
    layers = []
    for _ in range(draw(st.integers(1, 2))):
        scores = torch.randn(batch, heads, n, n, generator=generator, dtype=torch.float64)
        layers.append(torch.softmax((scores * 3).masked_fill(hidden, -torch.inf), -1))
    tokens = torch.randint(0, 4, (batch, n), generator=generator)
    return Sample(layers, tokens, mask.long(), causal)
