"""Three kinds of noise, none of which depends on the length of the sequence."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Protocol

import torch
from torch import Generator, Tensor

from attncheck.patterns.pattern import normalise

__all__ = ["NOISES", "Noise"]


class Noise(Protocol):
    """Adds noise to weights ``(..., query, key)``; hidden keys stay exactly 0."""

    def __call__(
        self, weights: Tensor, visible: Tensor, level: float, generator: Generator
    ) -> Tensor:
        """Return noisy weights, rows summing to 1."""
        ...  # pragma: no cover


def _blend(weights: Tensor, visible: Tensor, level: float, drawn: Tensor) -> Tensor:
    return (1 - level) * weights + level * normalise(drawn * visible, visible)


def _uniform(weights: Tensor, visible: Tensor, level: float, generator: Generator) -> Tensor:
    drawn = torch.rand(weights.shape, generator=generator, dtype=weights.dtype)
    return _blend(weights, visible, level, drawn)


def _dirichlet(weights: Tensor, visible: Tensor, level: float, generator: Generator) -> Tensor:
    drawn = torch.empty(weights.shape, dtype=weights.dtype).exponential_(generator=generator)
    return _blend(weights, visible, level, drawn)


def _logit(weights: Tensor, visible: Tensor, level: float, generator: Generator) -> Tensor:
    drawn = torch.randn(weights.shape, generator=generator, dtype=weights.dtype)
    return normalise(weights * (level * drawn).exp(), visible)


NOISES: Final[Mapping[str, Noise]] = MappingProxyType(
    {"uniform": _uniform, "dirichlet": _dirichlet, "logit": _logit}
)
"""``uniform``: a share of the mass goes to numbers from U(0, 1), scaled to sum 1. ``dirichlet``:
to a draw from the flat Dirichlet distribution, which is rougher. ``logit``: normal numbers are
added to the logits, which multiplies every weight by a log-normal factor; a weight of 0 stays 0."""
