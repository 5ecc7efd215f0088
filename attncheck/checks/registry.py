"""`CHECKS`: every check by name. A new check is one file and one entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from attncheck.checks.causal import check_causal
from attncheck.checks.close import check_attention_close
from attncheck.checks.distinct import check_heads_distinct
from attncheck.checks.entropy import check_entropy
from attncheck.checks.finding import Finding
from attncheck.checks.mask import check_mask_respected
from attncheck.checks.pattern import check_pattern
from attncheck.checks.row_sums import check_row_stochastic
from attncheck.checks.segments import check_segments_isolated
from attncheck.checks.sink import check_sink_mass
from attncheck.checks.window import check_sliding_window

__all__ = ["CHECKS", "Check"]


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: The ``NAME`` of ``assert_NAME`` and ``check_NAME``.
        run: Judges attention and returns a `Finding`; never raises for what it finds.
        summary: What holds if it passes, in one line.
        source: Where the property comes from.

    Example:
        >>> import torch
        >>> CHECKS["causal"].run(torch.eye(4)).passed
        True
    """

    name: str
    run: Callable[..., Finding]
    summary: str
    source: str


_ENTRIES = (
    Check(
        "row_stochastic",
        check_row_stochastic,
        "every row is finite, not negative, and sums to 1 with its sink",
        "definition of softmax; Vaswani et al. 2017, eq. 1",
    ),
    Check(
        "causal",
        check_causal,
        "no query attends to a later key",
        "Vaswani et al. 2017, sec. 3.2.3",
    ),
    Check(
        "mask_respected",
        check_mask_respected,
        "no query attends to a hidden key",
        "Vaswani et al. 2017, sec. 3.2.3",
    ),
    Check(
        "sliding_window",
        check_sliding_window,
        "no query attends beyond its window",
        "Beltagy et al. 2020, Longformer, sec. 3.1",
    ),
    Check(
        "segments_isolated",
        check_segments_isolated,
        "no query attends to another segment of a packed sequence",
        "Krell et al. 2021, sequence packing without cross-contamination",
    ),
    Check(
        "entropy",
        check_entropy,
        "the mean entropy of each head lies within bounds",
        "Clark et al. 2019, sec. 3.3; Zhai et al. 2023 on entropy collapse",
    ),
    Check(
        "sink_mass",
        check_sink_mass,
        "the mean mass on the sink of each head lies within bounds",
        "Xiao et al. 2023; Gu et al. 2024",
    ),
    Check(
        "pattern",
        check_pattern,
        "heads show a pattern of the catalogue",
        "see PATTERNS",
    ),
    Check(
        "heads_distinct",
        check_heads_distinct,
        "no two heads do the same",
        "Clark et al. 2019, sec. 6",
    ),
    Check(
        "attention_close",
        check_attention_close,
        "two captures of the same heads agree",
        "total variation distance",
    ),
)

CHECKS: Final[Mapping[str, Check]] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
"""Every check by name, read-only."""
