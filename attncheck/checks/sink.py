"""Heads rest on the sink as much as they should."""

from __future__ import annotations

from typing import Any

from attncheck.attention import AttentionLike
from attncheck.attention.light import on_one_thread_if_light
from attncheck.checks.bounds import judge_bounds, require_bounds
from attncheck.checks.door import raise_if_failed, require_tolerance
from attncheck.checks.finding import Finding
from attncheck.checks.select import HeadSelection
from attncheck.checks.subject import open_subject

__all__ = ["assert_sink_mass", "check_sink_mass"]


@on_one_thread_if_light
def check_sink_mass(
    attn: AttentionLike,
    *,
    min: float | None = None,
    max: float | None = None,
    tokens: Any = None,
    mask: Any = None,
    causal: bool | None = None,
    heads: HeadSelection = None,
    atol: float | None = None,
    name: str = "attn",
) -> Finding:
    """Find heads whose sink mass is out of bounds; arguments and errors as `assert_sink_mass`."""
    bounds = require_bounds(min, max, most=1.0)
    require_tolerance(atol)
    subject = open_subject(
        attn, tokens=tokens, mask=mask, causal=causal, heads=heads, name=name, weights_only=True
    )
    return judge_bounds(
        subject,
        bounds,
        check="sink_mass",
        metric="sink_mass",
        label="sink mass",
        hint="sink mass is attention on the first visible key, and on a learned sink",
        atol=subject.tolerance.row_sum if atol is None else atol,
    )


def assert_sink_mass(
    attn: AttentionLike,
    *,
    min: float | None = None,
    max: float | None = None,
    tokens: Any = None,
    mask: Any = None,
    causal: bool | None = None,
    heads: HeadSelection = None,
    atol: float | None = None,
    name: str = "attn",
) -> None:
    """Assert that the sink mass of each head, the mean over its rows, lies within bounds.

    Sink mass is attention on the first visible key, plus that on a learned sink, of the queries
    behind that key (Xiao et al. 2023; Gu et al. 2024). Queries that a sliding window keeps from
    that key count only where there is a learned sink. Uniform attention has some by chance.

    Args:
        attn: Attention weights in any form that `as_attention` takes.
        min: Lower bound, 0 to 1; None is no bound.
        max: Upper bound, 0 to 1; None is no bound.
        tokens: Strings or ids, one per key, shown at the worst row. Default: what maps carry.
        mask: Which keys are visible, see `as_visible`; the sink is the first of them. Default:
            what maps carry.
        causal: Whether queries see no later key. Default: as `as_attention` finds it.
        heads: Which heads: ``"L5H1"``, ``"L5"``, ``3`` (of every layer), ``[(5, 1)]``, or a list.
            Default: all.
        atol: How far outside a mean may lie. Default: what rounding does to a row sum in the dtype.
        name: What the message calls the attention.

    Raises:
        CheckFailure: A head lies outside.
        ValueError: No bound is given, ``min > max``, no row to judge, or ``attn`` does not hold
            attention weights.

    Example:
        >>> import torch
        >>> weights = torch.tensor([[1.0, 0.0, 0.0], [0.75, 0.25, 0.0], [0.75, 0.0, 0.25]])
        >>> assert_sink_mass(weights, min=0.7, max=0.8)
        >>> assert_sink_mass(weights, max=0.5)
        Traceback (most recent call last):
        attncheck.CheckFailure: sink mass outside bounds: 1 of 1 heads
        ...
    """
    __tracebackhide__ = True
    raise_if_failed(
        check_sink_mass(
            attn,
            min=min,
            max=max,
            tokens=tokens,
            mask=mask,
            causal=causal,
            heads=heads,
            atol=atol,
            name=name,
        )
    )
