"""Heads are as sharp, or as broad, as they should be."""

from __future__ import annotations

from typing import Any, Literal

from attncheck.attention import AttentionLike
from attncheck.attention.light import on_one_thread_if_light
from attncheck.checks.bounds import judge_bounds, require_bounds
from attncheck.checks.door import raise_if_failed, require_tolerance
from attncheck.checks.finding import Finding
from attncheck.checks.select import HeadSelection
from attncheck.checks.subject import open_subject

__all__ = ["assert_entropy", "check_entropy"]

UNITS = {"normalized": "normalized_entropy", "nats": "entropy"}


@on_one_thread_if_light
def check_entropy(
    attn: AttentionLike,
    *,
    min: float | None = None,
    max: float | None = None,
    unit: Literal["normalized", "nats"] = "normalized",
    tokens: Any = None,
    mask: Any = None,
    causal: bool | None = None,
    heads: HeadSelection = None,
    atol: float | None = None,
    name: str = "attn",
) -> Finding:
    """Find heads whose entropy is out of bounds; arguments and errors as `assert_entropy`."""
    if not isinstance(unit, str) or unit not in UNITS:
        raise ValueError(f"unit: got {unit!r}; expected 'normalized' (0 to 1) or 'nats'")
    bounds = require_bounds(min, max, most=1.0 if unit == "normalized" else None)
    require_tolerance(atol)
    subject = open_subject(
        attn, tokens=tokens, mask=mask, causal=causal, heads=heads, name=name, weights_only=True
    )
    return judge_bounds(
        subject,
        bounds,
        check="entropy",
        metric=UNITS[unit],
        label="entropy" if unit == "normalized" else "entropy in nats",
        hint="0 is one key, 1 is uniform over visible keys; plot_attention_heatmap shows which",
        atol=subject.tolerance.row_sum if atol is None else atol,
    )


def assert_entropy(
    attn: AttentionLike,
    *,
    min: float | None = None,
    max: float | None = None,
    unit: Literal["normalized", "nats"] = "normalized",
    tokens: Any = None,
    mask: Any = None,
    causal: bool | None = None,
    heads: HeadSelection = None,
    atol: float | None = None,
    name: str = "attn",
) -> None:
    """Assert that the entropy of each head, the mean over its rows, lies within bounds.

    Entropy is that of a row over its visible keys, divided by its maximum ``log(visible keys)``:
    0 is one key, 1 is uniform, in causal attention too. Rows that see one key have no choice and
    are left out. Collapse of entropy precedes training instability (Zhai et al. 2023).

    Args:
        attn: Attention weights in any form that `as_attention` takes.
        min: Lower bound; None is no bound.
        max: Upper bound; None is no bound.
        unit: ``"normalized"`` (0 to 1), or ``"nats"`` (0 to ``log(visible keys)``, every row).
        tokens: Strings or ids, one per key, shown at the worst row. Default: what maps carry.
        mask: Which keys are visible, see `as_visible`. Default: what maps carry.
        causal: Whether queries see no later key. Default: as `as_attention` finds it.
        heads: Which heads: ``"L5H1"``, ``"L5"``, ``3`` (of every layer), ``[(5, 1)]``, or a list.
            Default: all.
        atol: How far outside a mean may lie. Default: what rounding does to a row sum in the dtype.
        name: What the message calls the attention.

    Raises:
        CheckFailure: A head lies outside.
        ValueError: No bound is given, ``min > max``, unknown unit, no row to judge, or ``attn``
            does not hold attention weights.

    Example:
        >>> import torch
        >>> uniform = torch.full((8, 8), 1 / 8)
        >>> assert_entropy(uniform, min=1.0)
        >>> assert_entropy(uniform, max=0.9)
        Traceback (most recent call last):
        attncheck.CheckFailure: entropy outside bounds: 1 of 1 heads
        ...
    """
    __tracebackhide__ = True
    raise_if_failed(
        check_entropy(
            attn,
            min=min,
            max=max,
            unit=unit,
            tokens=tokens,
            mask=mask,
            causal=causal,
            heads=heads,
            atol=atol,
            name=name,
        )
    )
