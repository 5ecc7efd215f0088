"""Extensions of attention, each an adapter with an oracle of its own."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from attncheck.conformance.extensions.extension import Extension, Variant
from attncheck.conformance.extensions.paged import PAGED
from attncheck.conformance.extensions.scores import ALIBI, SINKS, SLIDING_WINDOW, SOFTCAP
from attncheck.conformance.extensions.sequences import KV_CACHE, PACKED

__all__ = ["EXTENSIONS", "Extension", "Variant"]

EXTENSIONS: Final = MappingProxyType(
    {e.name: e for e in (SLIDING_WINDOW, SOFTCAP, ALIBI, SINKS, KV_CACHE, PAGED, PACKED)}
)
"""By name."""
