"""Warn at the user's line: the nearest on the stack that belongs to no library of training."""

from __future__ import annotations

import sys
import warnings
from typing import Final

from attncheck.errors import MonitorWarning

__all__ = ["warn"]

LIBRARIES: Final = frozenset(
    {
        *("attncheck", "contextlib", "torch"),
        *("accelerate", "lightning", "pytorch_lightning", "transformers"),
    }
)
"""What lies between the user's line and us: whoever calls the model, and whoever has it called."""


def warn(text: str) -> None:
    """Warn with `MonitorWarning`, as if the line that ran the step did."""
    warnings.warn(text, MonitorWarning, stacklevel=1 + _distance())


def _distance() -> int:
    """How many calls away from `warn` the user's line is; 0 where no line is the user's."""
    frame, distance = sys._getframe(1), 0
    while str(frame.f_globals.get("__name__")).partition(".")[0] in LIBRARIES:
        if frame.f_back is None:
            return 0
        frame, distance = frame.f_back, distance + 1
    return distance
