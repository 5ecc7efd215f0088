"""Two captures of one attention agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attncheck.attention import AttentionLike, LayerAttention
from attncheck.attention.light import on_one_thread_if_light
from attncheck.checks.door import raise_if_failed, require_tolerance
from attncheck.checks.finding import Evidence, Finding, Offender
from attncheck.checks.finite import judge_finite, spoiled_rows
from attncheck.checks.select import HeadSelection
from attncheck.checks.subject import Subject, head_label, open_subject
from attncheck.checks.text import count
from attncheck.tolerances import tolerance_for

__all__ = ["assert_attention_close", "check_attention_close"]


@dataclass(frozen=True)
class _Limits:
    """What may differ: mass per head and row, or, if asked for, single weights."""

    head: float
    row: float
    weight: tuple[float, float] | None

    def __str__(self) -> str:
        if self.weight is not None:
            atol, rtol = self.weight
            return f"|attn - expected| <= {atol:g} + {rtol:g} * |expected|"
        return f"0.5 * sum |attn - expected|: mean <= {self.head:g}, row <= {self.row:g}"


@dataclass(frozen=True)
class _Compared:
    """One pair of layers: differences and what is too far, ``(batch, head, query, key)``."""

    layer: LayerAttention
    gap: Tensor
    over: Tensor
    rows: Tensor
    mean: Tensor
    broken: Tensor


@on_one_thread_if_light
def check_attention_close(
    actual: AttentionLike,
    expected: AttentionLike,
    *,
    max_variation: float | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    tokens: Any = None,
    mask: Any = None,
    causal: bool | None = None,
    heads: HeadSelection = None,
    name: str = "attn",
) -> Finding:
    """Find heads that differ; arguments and errors as `assert_attention_close`."""
    subject = open_subject(actual, tokens=tokens, mask=mask, causal=causal, heads=heads, name=name)
    other = open_subject(expected, mask=mask, causal=causal, heads=heads, name="expected")
    limits = _limits(subject, other, max_variation, atol, rtol)
    pairs = _paired(subject.layers, other.layers, subject.name)
    judged = [_judged_rows(a, e, name) for a, e in pairs]
    unfinite = _unfinite(subject, other, judged)
    if unfinite is not None:
        return unfinite
    compared = [_compare(a, e, rows, limits) for (a, e), rows in zip(pairs, judged, strict=True)]
    ranked = sorted(
        ((one, head) for one in compared for head in one.broken.nonzero().flatten().tolist()),
        key=lambda pair: -float(pair[0].rows[:, pair[1]].amax()),
    )
    n_heads, found = subject.n_heads, len(ranked)
    return Finding(
        check="attention_close",
        passed=not ranked,
        verdict=f"attention differs: {found} of {n_heads} heads" if ranked else "attention agrees",
        name=name,
        subject=f"{subject.description} against {other.description.split(' (')[0]}",
        rule=str(limits),
        columns=("mean variation", "worst row", "worst weight"),
        offenders=tuple(_offender(subject, one, head) for one, head in ranked),
        n_passed=n_heads - found,
        n_total=n_heads,
        hints=("different dtype, backend, mask or dropout? compare model.eval() in float32",)
        if ranked
        else (),
        evidence=_evidence(subject, *ranked[0]) if ranked else None,
    )


def assert_attention_close(
    actual: AttentionLike,
    expected: AttentionLike,
    *,
    max_variation: float | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    tokens: Any = None,
    mask: Any = None,
    causal: bool | None = None,
    heads: HeadSelection = None,
    name: str = "attn",
) -> None:
    """Assert that two captures of the same heads agree, head by head.

    Heads are compared by mass: total variation, half the summed absolute difference of a row, is
    the share of attention that has moved. A relative error would be all about weights near 0. Its
    mean over rows and its largest row are judged, so that one wrong row in a long sequence tells.

    Args:
        actual: Attention weights in any form that `as_attention` takes.
        expected: What they should be, of the same layers, heads and shape.
        max_variation: Largest mean total variation of a head, 0 to 1; a single row may have five
            times that. Default: by the coarser dtype of the two, see `TOLERANCES`.
        atol: Judge single weights instead, ``|actual - expected| <= atol + rtol * |expected|``.
            Default: 0 if ``rtol`` is given.
        rtol: See ``atol``. Default: 0 if ``atol`` is given.
        tokens: Strings or ids, one per key, shown at the worst position. Default: what maps carry.
        mask: Which keys are visible, see `as_visible`; rows that see no key, and rows
            of padding, are left out. Default: what maps carry.
        causal: Whether queries see no later key; only says which rows see no key at all.
        heads: Which heads: ``"L5H1"``, ``"L5"``, ``3`` (of every layer), ``[(5, 1)]``, or a list.
            Default: all.
        name: What the message calls ``actual``.

    Raises:
        CheckFailure: A head differs; or a row that sees a key holds NaN, be it in both.
        ValueError: Layers, heads or shapes do not match, no row is judged, or ``max_variation``
            comes together with ``atol`` or ``rtol``.

    Example:
        >>> import torch
        >>> weights = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
        >>> assert_attention_close(weights, weights + 1e-7)
        >>> assert_attention_close(weights, weights.flip(0))
        Traceback (most recent call last):
        attncheck.CheckFailure: attention differs: 1 of 1 heads
        ...
    """
    __tracebackhide__ = True
    raise_if_failed(
        check_attention_close(
            actual,
            expected,
            max_variation=max_variation,
            atol=atol,
            rtol=rtol,
            tokens=tokens,
            mask=mask,
            causal=causal,
            heads=heads,
            name=name,
        )
    )


def _limits(
    actual: Subject,
    expected: Subject,
    max_variation: float | None,
    atol: float | None,
    rtol: float | None,
) -> _Limits:
    for label, value in (("max_variation", max_variation), ("atol", atol), ("rtol", rtol)):
        require_tolerance(value, label)
    if max_variation is not None and max_variation >= 1:
        raise ValueError(f"max_variation: got {max_variation}; no two rows differ by more than 1")
    single = atol is not None or rtol is not None
    if single and max_variation is not None:
        raise ValueError(
            "max_variation judges mass, atol and rtol judge single weights: give one or the other"
        )
    dtypes = [layer.weights.dtype for layer in (*actual.layers, *expected.layers)]
    tolerance = tolerance_for(*dtypes)
    head = tolerance.total_variation if max_variation is None else max_variation
    row = tolerance.row_variation if max_variation is None else 5 * max_variation
    return _Limits(head, row, (atol or 0.0, rtol or 0.0) if single else None)


def _paired(
    actual: tuple[LayerAttention, ...], expected: tuple[LayerAttention, ...], name: str
) -> list[tuple[LayerAttention, LayerAttention]]:
    if len(actual) != len(expected):
        raise ValueError(f"expected: has {len(expected)} layers, {name} has {len(actual)}")
    for a, e in zip(actual, expected, strict=True):
        if a.weights.shape != e.weights.shape or a.heads != e.heads:
            raise ValueError(
                f"expected: {e.name} has shape {tuple(e.weights.shape)} and heads {e.heads}, "
                f"{name} has {tuple(a.weights.shape)} and {a.heads}"
            )
    return list(zip(actual, expected, strict=True))


def _judged_rows(actual: LayerAttention, expected: LayerAttention, name: str) -> Tensor:
    """Rows that see a key in either: bool ``(batch, head, query)``."""
    sighted = actual.sighted_rows() | expected.sighted_rows().to(actual.weights.device)
    judged = sighted.expand(actual.weights.shape[:3])
    if not bool(judged.any(2).any(0).all()):
        raise ValueError(
            f"{name}: every row of a head of {actual.name} is masked; nothing to judge"
        )
    return judged


def _unfinite(actual: Subject, expected: Subject, judged: list[Tensor]) -> Finding | None:
    """Tell NaN: in both of them too, where it is the same and still no attention."""
    sides = {
        subject.name: [spoiled_rows(*pair) for pair in zip(subject.layers, judged, strict=True)]
        for subject in (expected, actual)
    }
    mine, theirs = ([one.spoiled.cpu() for one in sides[s.name]] for s in (actual, expected))
    if not any(bool(one.any()) for one in mine):
        return judge_finite(expected, "attention_close", sides[expected.name])
    same = all(torch.equal(*pair) for pair in zip(mine, theirs, strict=True))
    n_theirs = sum(int(one.sum()) for one in theirs)
    told = "not finite in the same rows" if same else f"not finite in {count(n_theirs)} rows"
    fact = (expected.name, told if n_theirs else "finite")
    return judge_finite(actual, "attention_close", sides[actual.name], [fact])


def _compare(
    actual: LayerAttention, expected: LayerAttention, judged: Tensor, limits: _Limits
) -> _Compared:
    """Compare in float32 at least; sum rows in float64."""
    wide = torch.promote_types(
        torch.promote_types(actual.weights.dtype, expected.weights.dtype), torch.float32
    )
    target = expected.weights.to(actual.weights.device, wide)
    counts = judged.sum((0, 2))
    gap = (actual.weights.to(wide) - target).masked_fill(~judged[..., None], 0).abs()
    rows = 0.5 * gap.sum(-1, dtype=torch.float64)
    mean = rows.sum((0, 2)) / counts
    if limits.weight is None:
        far = rows > limits.row
        broken = (mean > limits.head) | far.any(2).any(0)
        over = gap > limits.row
    else:
        over = gap > limits.weight[0] + limits.weight[1] * target.abs()
        over &= judged[..., None]
        broken = over.any(3).any(2).any(0)
    return _Compared(actual, gap, over, rows, mean, broken)


def _offender(subject: Subject, one: _Compared, head: int) -> Offender:
    batch, query, key = _worst(one, head)
    return Offender(
        head=head_label(one.layer, head),
        values=(float(one.mean[head]), float(one.rows[:, head].amax())),
        worst=float(one.gap[batch, head, query, key]),
        at=subject.position(one.layer, batch, query, key),
    )


def _evidence(subject: Subject, one: _Compared, head: int) -> Evidence:
    batch, query, key = _worst(one, head)
    return subject.evidence(one.layer, head, batch, one.over, around=(query, key))


def _worst(one: _Compared, head: int) -> tuple[int, int, int]:
    gaps = one.gap[:, head]
    place = torch.unravel_index(gaps.argmax(), gaps.shape)
    batch, query, key = (int(index) for index in place)
    return batch, query, key
