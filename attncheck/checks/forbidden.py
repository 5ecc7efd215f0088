"""Rules of one kind: some keys are forbidden to some queries, and may carry no weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attncheck.attention import LayerAttention
from attncheck.checks.door import require_tolerance
from attncheck.checks.finding import Evidence, Finding, Offender
from attncheck.checks.finite import judge_finite, spoiled_rows
from attncheck.checks.subject import Subject, head_label
from attncheck.checks.text import VERDICT, count

__all__ = ["ForbiddenRule", "judge_forbidden", "require_positions"]


@dataclass(frozen=True)
class ForbiddenRule:
    """A rule about keys that a query must not attend to.

    Attributes:
        check: Name of the check.
        holds: What the attention is if the rule holds: ``"causal"``.
        noun: What the forbidden weights are: ``"future"``.
        where: Which keys are forbidden, in code: ``"key > query"``.
        hint: What to do when it is broken.
        vacuous: Message of the `ValueError` where no weight is forbidden; None if that is fine.
    """

    check: str
    holds: str
    noun: str
    where: str
    hint: str
    vacuous: str | None


@dataclass(frozen=True)
class _Judged:
    """One layer, judged: bool cells over the limit, and sums per head."""

    layer: LayerAttention
    allowed: Tensor
    over: Tensor
    magnitude: Tensor
    mass: Tensor
    counts: Tensor
    n_forbidden: int


def judge_forbidden(
    subject: Subject,
    rule: ForbiddenRule,
    allowed: Callable[[LayerAttention], Tensor],
    *,
    atol: float | None,
) -> Finding:
    """Find weights on forbidden keys.

    Rows that see no key at all (fully masked) and rows of padding are left out: they hold NaN,
    zero or anything. NaN in any other row is told as such. With the default ``atol`` a row fails
    also if its forbidden weights, each too small to count, add up to more than rounding allows.

    Args:
        subject: The attention.
        rule: Its words.
        allowed: From a layer to bool, broadcastable to its weights: what a query may attend to.
        atol: Largest weight on a forbidden key. Default: by dtype.

    Raises:
        ValueError: Nothing is forbidden, so that nothing would be judged; or a wrong ``atol``.
    """
    require_tolerance(atol)
    limit = subject.tolerance.atol if atol is None else float(atol)
    row_limit = None if atol is not None else subject.tolerance.row_sum
    kept = [allowed(layer) for layer in subject.layers]
    pairs = list(zip(subject.layers, kept, strict=True))
    rows = [spoiled_rows(layer, _judged_rows(layer, seen)) for layer, seen in pairs]
    unfinite = judge_finite(subject, rule.check, rows)
    if unfinite is not None:
        return unfinite
    judged = [_judge(layer, seen, limit, row_limit) for layer, seen in pairs]
    n_forbidden = sum(one.n_forbidden for one in judged)
    if n_forbidden == 0 and rule.vacuous is not None:
        raise ValueError(f"{subject.name}: {rule.vacuous}")
    ranked = sorted(
        ((one, head) for one in judged for head in range(one.layer.n_heads) if one.counts[head]),
        key=lambda pair: -float(pair[0].mass[pair[1]]),
    )
    found = [_offender(subject, one, head) for one, head in ranked]
    n_over = sum(int(one.counts.sum()) for one in judged)
    return Finding(
        check=rule.check,
        passed=not found,
        verdict=_verdict(rule, judged, n_over, n_forbidden, limit),
        name=subject.name,
        subject=subject.description,
        rule=f"attn[..., query, key] <= {limit:g} where {rule.where}",
        columns=(f"{rule.noun} mass", "weights", "worst"),
        offenders=tuple(offender for offender, _ in found),
        n_passed=subject.n_heads - len(found),
        n_total=subject.n_heads,
        hints=(rule.hint,) if found else (),
        evidence=found[0][1]() if found else None,
    )


def require_positions(subject: Subject, doing: str) -> tuple[LayerAttention, ...]:
    """Return the self-attention layers, in which query and key positions count the same tokens.

    Raises:
        ValueError: There is none, or one has more queries than keys.
    """
    own = tuple(layer for layer in subject.layers if layer.kind != "cross")
    if not own:
        raise ValueError(
            f"{subject.name}: only cross-attention, whose queries and keys are different "
            f"sequences: there is nothing to {doing}"
        )
    for layer in own:
        if layer.n_query > layer.n_key:
            raise ValueError(
                f"{subject.name}: {layer.name} has {layer.n_query} queries but only {layer.n_key} "
                f"keys, so that query positions are unknown; expected self-attention to {doing}"
            )
    return own


def _judged_rows(layer: LayerAttention, allowed: Tensor) -> Tensor:
    """Rows that have a key to attend to, and are no padding."""
    return (allowed & layer.visible()).any(-1) & layer.sighted_rows()


def _judge(
    layer: LayerAttention, allowed: Tensor, limit: float, row_limit: float | None
) -> _Judged:
    weights = layer.weights
    rows = _judged_rows(layer, allowed)
    forbidden = ~allowed & rows[..., None]
    magnitude = weights.masked_fill(~forbidden, 0).abs()
    # The limit is rounded as the weights are.
    over = magnitude > torch.tensor(limit, dtype=weights.dtype, device=weights.device)
    row_mass = magnitude.sum(-1, dtype=torch.float64)
    if row_limit is not None:
        over |= (row_mass > row_limit)[..., None] & (magnitude != 0)
    n_rows = rows.expand(weights.shape[:3]).sum((0, 2)).clamp(min=1)
    return _Judged(
        layer=layer,
        allowed=allowed & layer.visible(),
        over=over,
        magnitude=magnitude,
        mass=row_mass.sum((0, 2)) / n_rows,
        counts=over.sum((0, 2, 3)),
        n_forbidden=int(forbidden.expand(weights.shape).sum()),
    )


def _offender(subject: Subject, one: _Judged, head: int) -> tuple[Offender, Callable[[], Evidence]]:
    cells = one.magnitude[:, head]
    where = int(cells.argmax())
    batch, query, key = (int(i) for i in torch.unravel_index(torch.tensor(where), cells.shape))
    offender = Offender(
        head=head_label(one.layer, head),
        values=(float(one.mass[head]), int(one.counts[head])),
        worst=float(one.layer.weights[batch, head, query, key]),
        at=subject.position(one.layer, batch, query, key),
    )

    def evidence() -> Evidence:
        return subject.evidence(
            one.layer, head, batch, one.over, around=(query, key), visible=one.allowed
        )

    return offender, evidence


def _verdict(
    rule: ForbiddenRule, judged: Sequence[_Judged], n_over: int, n_forbidden: int, limit: float
) -> str:
    """Say it in 48 columns: without the word weights where numbers are long."""
    total = f"{count(n_forbidden)} {rule.noun}"
    if not n_over:
        return f"{rule.holds}: {total} weights <= {limit:g}"
    single = any(bool((one.magnitude[one.over] > limit).any()) for one in judged)
    how = f"> {limit:g}" if single else "add up"
    start = f"not {rule.holds}: {count(n_over)} of {total}"
    long = f"{start} weights {how}"
    return long if len(long) <= VERDICT else f"{start} {how}"
