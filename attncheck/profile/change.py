"""`MeasureChange`: how far one measure of one head moved between two profiles."""

from __future__ import annotations

import math
from dataclasses import dataclass

from attncheck.attention import head_name

__all__ = ["MeasureChange"]


@dataclass(frozen=True)
class MeasureChange:
    """One measure of one head, before and after.

    Attributes:
        measure: Name of the measure.
        layer: Number of the layer.
        head: Number of the head.
        before: Value in the first profile.
        after: Value in the second.

    Example:
        >>> change = MeasureChange("entropy", layer=5, head=1, before=0.5, after=2.0)
        >>> change.name, change.change, change.size
        ('L5H1', 1.5, 0.75)
    """

    measure: str
    layer: int
    head: int
    before: float
    after: float

    @property
    def name(self) -> str:
        """The head as messages call it."""
        return head_name(self.layer, self.head)

    @property
    def change(self) -> float:
        """``after - before``, in the unit of the measure."""
        return self.after - self.before

    @property
    def size(self) -> float:
        """What changes are sorted by: ``|change| / max(1, |before|, |after|)``.

        For shares that is the change itself, for nats, keys and tokens beyond 1 the change in
        proportion. Infinite where a value appeared, vanished or became infinite, 0 where there is
        none.
        """
        if self.before == self.after or (math.isnan(self.before) and math.isnan(self.after)):
            return 0.0
        if not math.isfinite(self.change):
            return math.inf
        return abs(self.change) / max(1.0, abs(self.before), abs(self.after))
