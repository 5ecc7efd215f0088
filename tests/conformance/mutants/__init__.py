"""Wrong implementations of attention: the battery must kill every one of them."""

from __future__ import annotations

from tests.conformance.mutants import (  # noqa: F401
    arithmetic,
    dispatch,
    gradients,
    hiding,
    normalising,
    reading,
    reported,
    stateful,
    survivors,
    tiled,
)
from tests.conformance.mutants.base import MUTANTS, Mutant

__all__ = ["MUTANTS", "Mutant"]
