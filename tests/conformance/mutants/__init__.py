"""Wrong implementations of attention: the battery must kill every one of them."""

from __future__ import annotations

from tests.conformance.mutants import (  # noqa: F401
    arithmetic,
    hiding,
    kernels,
    normalising,
    reading,
    reported,
    stateful,
    survivors,
)
from tests.conformance.mutants.base import MUTANTS, Mutant

__all__ = ["MUTANTS", "Mutant"]
