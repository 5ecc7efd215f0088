"""`Trial`: one thing that was tried on a model, and how far it moved what must stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

from torch import Tensor

from attncheck.attention import LayerAttention
from attncheck.model_checks.subject import ModelSubject

__all__ = ["Replay", "Trial"]

Align = Callable[[Tensor], Tensor | None]
"""From what a module returned to the part that must agree; None where it can't be told."""


@dataclass(frozen=True, eq=False)
class Replay:
    """How to run both sides of a trial again, to find where they part.

    Attributes:
        one: The run as it should be.
        two: The other run.
        align_one: The part of a module's output that is compared, of the first run.
        align_two: The same of the second.
        subject: Model and inputs whose attention shows the mistake.
        extra: Further arguments of that call.
        forbidden: Bool, broadcastable to a layer's weights: what must carry no weight; None where
            the mistake is no forbidden key, and rows of the two runs are compared instead.
        between: What happens between the two runs.
        queries: First and last query, exclusive, of the first run that the second one repeats.
    """

    one: Callable[[], Any]
    two: Callable[[], Any]
    align_one: Align
    align_two: Align
    subject: ModelSubject
    extra: dict[str, Any]
    forbidden: Callable[[LayerAttention], Tensor | None] | None = None
    between: Callable[[], Any] | None = None
    queries: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Trial:
    """One trial.

    Attributes:
        method: ``"perturbed"``, ``"gradient"``, ``"compared"``, ``"repeated"``.
        what: What was done, e.g. ``"positions 7 to 13 replaced"``.
        moved: ``(batch, position)``: how far each position moved that must not move, 0 elsewhere.
        limit: How far it may.
        judged: Number of positions that were judged.
        offset: Number of the first column of ``moved``.
        axis: What a column of ``moved`` is: ``"output"`` or ``"input"``.
        replay: How to look into it, or None.
    """

    method: str
    what: str
    moved: Tensor
    limit: float
    judged: int
    offset: int = 0
    axis: str = "output"
    replay: Replay | None = None

    @property
    def failed(self) -> bool:
        """Whether something moved further than it may; NaN did."""
        return bool((~(self.moved <= self.limit)).any())

    @property
    def exceeds(self) -> bool:
        """Whether something is known to have moved further than it may."""
        return bool((self.moved > self.limit).any())

    @property
    def n_failed(self) -> int:
        """How many positions moved."""
        return int((~(self.moved <= self.limit)).sum())

    @property
    def worst(self) -> tuple[float, int, int]:
        """The largest movement, its row of the batch and its position."""
        held = self.moved.nan_to_num(-1.0 if self.exceeds else inf, posinf=inf)
        row, column = divmod(int(held.argmax()), held.shape[1])
        return float(self.moved[row, column]), row, column + self.offset
