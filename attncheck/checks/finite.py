"""NaN is told as NaN: no rule about weights is broken by it, and none is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from attncheck.attention import LayerAttention
from attncheck.checks.finding import Evidence, Finding, Offender
from attncheck.checks.subject import Subject, head_label
from attncheck.checks.text import count

__all__ = ["SpoiledRows", "judge_finite", "spoiled_rows"]

WHOLE: Final = (
    "whole rows of NaN: softmax of a row that may see no key (where that is meant, pass mask= and "
    "such rows are left out), or of scores that were NaN before"
)
INSIDE: Final = "NaN or inf inside rows: look for overflow in the scores (float16?)"


@dataclass(frozen=True)
class SpoiledRows:
    """The rows of one layer that hold NaN or inf, among those that are judged.

    Attributes:
        layer: The layer.
        judged: Bool ``(batch, head, query)``: rows that are judged.
        spoiled: Bool ``(batch, head, query)``: those of them that are not finite.
    """

    layer: LayerAttention
    judged: Tensor
    spoiled: Tensor


def spoiled_rows(layer: LayerAttention, judged: Tensor) -> SpoiledRows:
    """Look for rows that are not finite.

    Args:
        layer: The layer.
        judged: Bool, broadcastable to ``(batch, head, query)``: rows that count.
    """
    # Extremes cost a tenth of asking every weight; NaN comes through them.
    weights = layer.weights
    finite = torch.isfinite(weights.amax(-1)) & torch.isfinite(weights.amin(-1))
    judged = judged.to(weights.device).expand(weights.shape[:3])
    return SpoiledRows(layer, judged, judged & ~finite)


def judge_finite(
    subject: Subject,
    check: str,
    rows: Sequence[SpoiledRows],
    facts: Sequence[tuple[str, str]] = (),
) -> Finding | None:
    """Tell rows that are not finite; None where there is none, so that the check goes on.

    Args:
        subject: The attention.
        check: Name of the check that would judge it.
        rows: What was found in each layer.
        facts: What else is to be said.
    """
    found = [
        (one, head)
        for one in rows
        for head in one.spoiled.any(2).any(0).nonzero().flatten().tolist()
    ]
    if not found:
        return None
    n_spoiled, n_rows = (sum(int(held.sum()) for held in kind) for kind in _kinds(rows))
    whole = all(bool(one.layer.weights.isnan().all(-1)[one.spoiled].all()) for one in rows)
    value = "NaN" if any(_holds_nan(one, head) for one, head in found) else "inf"
    return Finding(
        check=check,
        passed=False,
        verdict=f"{value} in {count(n_spoiled)} of {count(n_rows)} rows",
        name=subject.name,
        subject=subject.description,
        rule="attn is finite in every row that sees a key",
        facts=tuple(facts),
        columns=("rows", "first"),
        offenders=tuple(_offender(subject, one, head) for one, head in found),
        n_passed=subject.n_heads - len(found),
        n_total=subject.n_heads,
        hints=(WHOLE if whole else INSIDE,),
        evidence=_evidence(subject, *found[0]),
    )


def _kinds(rows: Sequence[SpoiledRows]) -> tuple[list[Tensor], list[Tensor]]:
    return [one.spoiled for one in rows], [one.judged for one in rows]


def _offender(subject: Subject, one: SpoiledRows, head: int) -> Offender:
    batch, query = _first(one, head)
    return Offender(
        head=head_label(one.layer, head),
        values=(int(one.spoiled[:, head].sum()),),
        worst="NaN" if _holds_nan(one, head) else "inf",
        at=subject.position(one.layer, batch, query),
    )


def _holds_nan(one: SpoiledRows, head: int) -> bool:
    """Whether the first spoiled row of a head holds NaN, not only inf."""
    batch, query = _first(one, head)
    return bool(one.layer.weights[batch, head, query].isnan().any())


def _evidence(subject: Subject, one: SpoiledRows, head: int) -> Evidence:
    batch, query = _first(one, head)
    wrong = ~torch.isfinite(one.layer.weights) & one.spoiled[..., None]
    return subject.evidence(one.layer, head, batch, wrong, around=(query, 0))


def _first(one: SpoiledRows, head: int) -> tuple[int, int]:
    batch, query = one.spoiled[:, head].nonzero()[0].tolist()
    return batch, query
