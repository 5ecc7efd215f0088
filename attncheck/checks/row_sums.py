"""Every row of weights is a probability distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor

from attncheck.attention import AttentionLike, LayerAttention
from attncheck.attention.light import on_one_thread_if_light
from attncheck.checks.defects import diagnose
from attncheck.checks.door import raise_if_failed, require_tolerance
from attncheck.checks.finding import Evidence, Finding, Offender
from attncheck.checks.select import HeadSelection
from attncheck.checks.subject import Subject, head_label, open_subject
from attncheck.checks.text import VERDICT, count

__all__ = ["MaskedRows", "assert_row_stochastic", "check_row_stochastic"]

MaskedRows = Literal["error", "zero", "nan", "any"]
CHOICES: Final = get_args(MaskedRows)


@dataclass(frozen=True)
class _Rows:
    """One layer, judged by rows: bool and float64 ``(batch, head, query)``; how many are masked."""

    layer: LayerAttention
    nan: Tensor
    negative: Tensor
    off: Tensor
    sums: Tensor
    lowest: Tensor
    n_masked: int

    @property
    def broken(self) -> Tensor:
        return self.nan | self.negative | self.off


@on_one_thread_if_light
def check_row_stochastic(
    attn: AttentionLike,
    *,
    tokens: Any = None,
    mask: Any = None,
    causal: bool | None = None,
    heads: HeadSelection = None,
    atol: float | None = None,
    masked_rows: MaskedRows = "error",
    name: str = "attn",
) -> Finding:
    """Find rows that are no distribution; arguments and errors as `assert_row_stochastic`."""
    require_tolerance(atol)
    if masked_rows not in CHOICES:
        raise ValueError(f"masked_rows: got {masked_rows!r}; expected one of {', '.join(CHOICES)}")
    subject = open_subject(attn, tokens=tokens, mask=mask, causal=causal, heads=heads, name=name)
    limit = subject.tolerance.row_sum if atol is None else float(atol)
    judged = [_judge(layer, limit, masked_rows) for layer in subject.layers]
    ranked = sorted(
        ((one, head) for one in judged for head in range(one.layer.n_heads)),
        key=lambda pair: -float(_errors(*pair).amax()),
    )
    broken = [(one, head) for one, head in ranked if one.broken[:, head].any()]
    n_rows = sum(one.sums.numel() for one in judged)
    n_broken = sum(int(one.broken.sum()) for one in judged)
    n_nan = sum(int(one.nan.sum()) for one in judged)
    n_masked = sum(one.n_masked for one in judged)
    sink = any(layer.sink_mass is not None for layer in subject.layers)
    return Finding(
        check="row_stochastic",
        passed=not broken,
        verdict=_verdict(n_broken, n_nan, n_rows),
        name=name,
        subject=subject.description,
        rule=f"attn >= 0 and |attn.sum(-1){' + sink' if sink else ''} - 1| <= {limit:g}",
        facts=(("masked", f"{count(n_masked)} rows see no key"),) if n_masked else (),
        columns=("wrong sums", "negative", "NaN rows", "worst"),
        offenders=tuple(_offender(subject, one, head) for one, head in broken),
        n_passed=subject.n_heads - len(broken),
        n_total=subject.n_heads,
        hints=tuple(_hints(judged, limit)) if broken else (),
        evidence=_evidence(subject, *broken[0]) if broken else None,
    )


def assert_row_stochastic(
    attn: AttentionLike,
    *,
    tokens: Any = None,
    mask: Any = None,
    causal: bool | None = None,
    heads: HeadSelection = None,
    atol: float | None = None,
    masked_rows: MaskedRows = "error",
    name: str = "attn",
) -> None:
    """Assert that every row is a distribution: finite, not negative, summing to 1.

    Rows are summed in float64, with the learned sink where a layer has one. The message tells NaN
    from wrong sums, and names the defect it looks like: softmax over the wrong axis, dropout,
    padded keys, scores instead of weights.

    Args:
        attn: Attention weights in any form that `as_attention` takes.
        tokens: Strings or ids, one per key, shown at the worst position. Default: what maps carry.
        mask: Which keys are visible, see `as_visible`. Default: what maps carry.
        causal: Whether queries see no later key; only says which rows see no key at all.
        heads: Which heads: ``"L5H1"``, ``"L5"``, ``3`` (of every layer), ``[(5, 1)]``, or a list.
            Default: all.
        atol: Largest ``|row sum - 1|``, and how far below 0 a weight may lie. Default: by dtype,
            see `TOLERANCES`.
        masked_rows: What a fully masked row must hold: ``"zero"``, ``"nan"``, or ``"any"``
            (backends differ). Which rows those are the mask (given, or carried by maps) and
            ``causal`` say; without a mask, rows of zeros only and rows of NaN only are taken for
            masked. Default ``"error"``: no row is taken for masked by what it holds, and rows that
            the mask or ``causal`` blinds may hold anything finite.
        name: What the message calls the attention.

    Raises:
        CheckFailure: A row is no distribution.
        ValueError: ``masked_rows`` is no choice, or every row is masked.

    Example:
        >>> import torch
        >>> assert_row_stochastic(torch.randn(2, 4, 8, 8).softmax(-1))
        >>> assert_row_stochastic(torch.randn(2, 4, 8, 8).softmax(-2))
        Traceback (most recent call last):
        attncheck.CheckFailure: not row-stochastic: 64 of 64 rows
        ...
    """
    __tracebackhide__ = True
    raise_if_failed(
        check_row_stochastic(
            attn,
            tokens=tokens,
            mask=mask,
            causal=causal,
            heads=heads,
            atol=atol,
            masked_rows=masked_rows,
            name=name,
        )
    )


def _judge(layer: LayerAttention, limit: float, masked_rows: MaskedRows) -> _Rows:
    weights = layer.weights
    sums = weights.sum(-1, dtype=torch.float64)
    if layer.sink_mass is not None:
        sums = sums + layer.sink_mass.to(sums)
    nan = ~torch.isfinite(weights).all(-1) | ~torch.isfinite(sums)
    lowest = weights.amin(-1).double()
    negative = (lowest < -limit) & ~nan
    off = ((sums - 1).abs() > limit) & ~nan
    masked = _masked(layer, guess=masked_rows != "error")
    if masked.all():
        raise ValueError(f"mask: every row of {layer.name} is fully masked; nothing to judge")
    excused = masked & _holds(weights, masked_rows)
    # A masked row that holds anything but what it must hold is wrong, even if it sums to 1.
    nan, negative = nan & ~excused, negative & ~excused
    off = (off | (masked & ~nan)) & ~excused
    return _Rows(layer, nan, negative, off, sums, lowest, int(masked.sum()))


def _holds(weights: Tensor, masked_rows: MaskedRows) -> Tensor:
    """Which rows hold what a fully masked row may."""
    if masked_rows == "any":
        return torch.ones(weights.shape[:3], dtype=torch.bool, device=weights.device)
    if masked_rows == "error":
        return torch.isfinite(weights).all(-1)
    return ((weights == 0) if masked_rows == "zero" else torch.isnan(weights)).all(-1)


def _masked(layer: LayerAttention, *, guess: bool) -> Tensor:
    """Which rows see no key: as the mask says, or, without one, if asked, as their values look."""
    blind = (~layer.visible().any(-1)).expand(layer.weights.shape[:3])
    if layer.mask is not None or not guess:
        return blind
    return blind | (layer.weights == 0).all(-1) | torch.isnan(layer.weights).all(-1)


def _errors(one: _Rows, head: int) -> Tensor:
    """How wrong each broken row of a head is, ``(batch, query)``; -1 for rows that are right."""
    error = (one.sums[:, head] - 1).abs().maximum(-one.lowest[:, head])
    return error.masked_fill(~one.broken[:, head], -1).masked_fill(one.nan[:, head], torch.inf)


def _offender(subject: Subject, one: _Rows, head: int) -> Offender:
    batch, query = _worst(one, head)
    if one.nan[batch, head, query]:
        worst = "NaN"
    elif one.off[batch, head, query]:
        worst = f"sum {float(one.sums[batch, head, query]):.6g}"
    else:
        worst = f"weight {float(one.lowest[batch, head, query]):.3g}"
    return Offender(
        head=head_label(one.layer, head),
        values=tuple(int(kind[:, head].sum()) for kind in (one.off, one.negative, one.nan)),
        worst=worst,
        at=subject.position(one.layer, batch, query),
    )


def _worst(one: _Rows, head: int) -> tuple[int, int]:
    batch, query = divmod(int(_errors(one, head).argmax()), one.layer.n_query)
    return batch, query


def _evidence(subject: Subject, one: _Rows, head: int) -> Evidence:
    batch, query = _worst(one, head)
    weights = one.layer.weights
    bad = ~torch.isfinite(weights) | ((weights < 0) & one.negative[..., None])
    return subject.evidence(one.layer, head, batch, bad, around=(query, 0))


def _hints(judged: list[_Rows], limit: float) -> list[str]:
    worst = max(judged, key=lambda one: int(one.broken.sum()))
    hint = diagnose(worst.layer, worst.sums, worst.nan, worst.broken, limit)
    return [hint] if hint else []


def _verdict(n_broken: int, n_nan: int, n_rows: int) -> str:
    if not n_broken:
        return f"row-stochastic: {count(n_rows)} rows"
    told = f"not row-stochastic: {count(n_broken)} of {count(n_rows)} rows"
    exact = f"{told}, {count(n_nan)} with NaN" if n_nan else told
    return exact if len(exact) <= VERDICT else f"{told}, NaN too"
