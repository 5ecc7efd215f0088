"""How far a model's output moves when nothing that matters changes: its own noise floor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from attncheck.model_checks.altering import rows
from attncheck.model_checks.running import embeddings_of, output
from attncheck.model_checks.subject import ModelSubject

__all__ = ["TIMES", "NoiseFloor", "distance", "jiggling", "measure_noise", "noise_of"]

TIMES: Final = 20
"""A difference counts from this many times the noise: other shapes round in other places."""

ROUNDINGS: Final = 16
"""A difference also exceeds this many roundings of the largest output."""


@dataclass(frozen=True)
class NoiseFloor:
    """Largest difference between outputs that should be equal, measured on the model itself.

    Attributes:
        repeat: Between identical runs.
        reorder: Between the batch in two orders.
        rounding: When what enters the model moves by one rounding of its dtype.
        scale: Largest absolute output.
        eps: One rounding of the dtype at 1.
    """

    repeat: float
    reorder: float
    rounding: float
    scale: float
    eps: float

    @property
    def largest(self) -> float:
        """The largest of the three."""
        return max(self.repeat, self.reorder, self.rounding)

    @property
    def limit(self) -> float:
        """Largest difference that is not told apart from noise."""
        return max(TIMES * self.largest, ROUNDINGS * self.eps * self.scale)

    @property
    def strict(self) -> float:
        """The same for runs that must not differ at all."""
        return ROUNDINGS * self.eps * self.scale

    def __str__(self) -> str:
        parts = f"repeat {self.repeat:.1g}, batch order {self.reorder:.1g}"
        return f"{self.largest:.2g} ({parts}, rounding {self.rounding:.1g})"


def distance(one: Tensor, two: Tensor) -> Tensor:
    """Largest absolute difference at each position, ``(batch, position)``.

    NaN where either holds NaN: nothing can be said, not even where both do.
    """
    return torch.where(one == two, 0.0, (one - two).abs()).amax(-1)


def noise_of(subject: ModelSubject, rounds: int = 2) -> NoiseFloor:
    """Measure the noise floor once for each subject, see `measure_noise`."""
    held = subject.measured
    if f"noise {rounds}" not in held:
        held[f"noise {rounds}"] = measure_noise(subject, rounds)
    noise: NoiseFloor = held[f"noise {rounds}"]
    return noise


def measure_noise(subject: ModelSubject, rounds: int = 2) -> NoiseFloor:
    """Measure the noise floor: identical runs, the batch in another order, inputs one rounding off.

    Args:
        subject: The model and its inputs.
        rounds: How often the inputs are moved by a rounding, up or down at random.
    """
    base = output(subject)
    again = output(subject)
    order = [*range(1, subject.batch), 0]
    turned = output(rows(subject, order))
    moved = [_largest(distance(base, _jiggled(subject, seed))) for seed in range(rounds)]
    return NoiseFloor(
        repeat=_largest(distance(base, again)),
        reorder=_largest(distance(base[order], turned)),
        rounding=max(moved),
        scale=_largest(base.abs()),
        eps=torch.finfo(subject.dtype).eps,
    )


def _largest(held: Tensor) -> float:
    """The largest finite number: what is not finite is no noise, and lets nothing else pass."""
    return float(held.nan_to_num(0.0, posinf=0.0).max())


@contextmanager
def jiggling(subject: ModelSubject, seed: int) -> Iterator[ModelSubject]:
    """Move what enters the model by one rounding, up or down at random."""
    random = torch.Generator().manual_seed(seed)

    def jiggle(held: Tensor) -> Tensor:
        signs = torch.randint(0, 2, held.shape, generator=random).to(held.device) * 2 - 1
        return held * (1 + signs * torch.finfo(held.dtype).eps).to(held.dtype)

    streams = [s for s in (subject.stream, subject.source) if s is not None]
    ids = [s for s in streams if not subject.inputs[s.name].is_floating_point()]
    vectors = {
        s.name: jiggle(subject.inputs[s.name])
        for s in streams
        if subject.inputs[s.name].is_floating_point()
    }
    with embeddings_of(subject, ids, jiggle):
        yield subject.having(**vectors)


def _jiggled(subject: ModelSubject, seed: int) -> Tensor:
    with jiggling(subject, seed) as moved:
        return output(moved)
