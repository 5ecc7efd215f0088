"""`Finding`: what a check found, as data; text is made from it later, by `render`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Evidence", "Finding", "Offender", "Position"]


@dataclass(frozen=True)
class Position:
    """Where in the weights something was found.

    Attributes:
        batch: Number of the sequence, None if there is only one.
        query: Number of the row, None if the whole head is meant.
        key: Number of the column, None if the whole row is meant.
        query_token: Token of the query, where known.
        key_token: Token of the key, where known.
    """

    batch: int | None = None
    query: int | None = None
    key: int | None = None
    query_token: str | int | None = None
    key_token: str | int | None = None


@dataclass(frozen=True)
class Offender:
    """One head (or pair of heads) that breaks the rule: a row of the table.

    Attributes:
        head: ``"L5H1"``, or ``"L5H1 L5H3"`` for a pair.
        values: One per column of `Finding.columns`, but the last; numbers or short words.
        worst: The value of the last column.
        at: Where that is.
    """

    head: str
    values: tuple[float | int | str, ...] = ()
    worst: float | int | str = ""
    at: Position = Position()


@dataclass(frozen=True, eq=False)
class Evidence:
    """A small CPU copy of the worst head, enough to draw it and to look into it later.

    Attributes:
        head: ``"L5H1"``.
        weights: ``(query, key)``, float32 or float64. Of a long sequence, the window around the
            worst position.
        offending: Bool ``(query, key)``: the cells that break the rule.
        visible: Bool ``(query, key)``: the keys that each query may see.
        batch: Number of the sequence.
        query_start: First row of the window.
        key_start: First column of the window.
        tokens: One per key of the window, where known.
        expected: What the weights were before, in the same window, where that is known.
    """

    head: str
    weights: NDArray[Any] = field(repr=False)
    offending: NDArray[np.bool_] = field(repr=False)
    visible: NDArray[np.bool_] = field(repr=False)
    batch: int = 0
    query_start: int = 0
    key_start: int = 0
    tokens: tuple[str | int, ...] | None = field(default=None, repr=False)
    expected: NDArray[Any] | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class Finding:
    """What a check found.

    Attributes:
        check: Name of the check in `CHECKS`.
        passed: Whether the rule holds.
        verdict: The first line: what holds or not, with counts.
        name: What the caller calls the attention.
        subject: dtype, shape and axes, e.g. ``"f32[2,4,16,16] (batch, head, query, key)"``.
        rule: What was demanded, in code.
        facts: What was measured besides, as label and text.
        columns: Heads of the table, from the second column on.
        offenders: What breaks the rule, worst first; all of them.
        n_passed: How many heads (or pairs) hold to the rule.
        n_total: How many were judged.
        unit: What was counted, plural: ``"heads"`` or ``"pairs"``.
        hints: What the numbers look like, and what to do.
        evidence: A copy of the worst head, or None.

    Example:
        >>> import torch
        >>> from attncheck.checks import check_causal
        >>> finding = check_causal(torch.full((1, 2, 4, 4), 0.25))
        >>> finding.passed, finding.n_passed, finding.offenders[0].head
        (False, 0, 'L0H0')
    """

    check: str
    passed: bool
    verdict: str
    name: str
    subject: str
    rule: str
    columns: tuple[str, ...] = ()
    offenders: tuple[Offender, ...] = ()
    n_passed: int = 0
    n_total: int = 0
    unit: str = "heads"
    hints: tuple[str, ...] = ()
    evidence: Evidence | None = None
    facts: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the finding without its evidence, ready for strict JSON (NaN becomes text)."""
        fields = {key: value for key, value in vars(self).items() if key != "evidence"}
        fields["offenders"] = [asdict(offender) for offender in self.offenders]
        return {key: _plain(value) for key, value in fields.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
