"""No query attends beyond its sliding window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from attncheck.attention import AttentionLike, LayerAttention
from attncheck.attention.arguments import whole_number
from attncheck.attention.light import on_one_thread_if_light
from attncheck.checks.door import raise_if_failed
from attncheck.checks.finding import Finding
from attncheck.checks.forbidden import ForbiddenRule, judge_forbidden, require_positions
from attncheck.checks.select import HeadSelection
from attncheck.checks.subject import open_subject

__all__ = ["assert_sliding_window", "check_sliding_window", "require_window"]


WHAT: Final = "an integer or (before, after)"


@on_one_thread_if_light
def check_sliding_window(
    attn: AttentionLike,
    window: int | tuple[int, int],
    *,
    tokens: Any = None,
    mask: Any = None,
    heads: HeadSelection = None,
    atol: float | None = None,
    name: str = "attn",
) -> Finding:
    """Find weights beyond the window; arguments and errors as `assert_sliding_window`."""
    before, after = _reach(window)
    subject = open_subject(attn, tokens=tokens, mask=mask, heads=heads, name=name)
    layers = require_positions(subject, "slide a window along")

    def within(layer: LayerAttention) -> Tensor:
        keys = torch.arange(layer.n_key, device=layer.weights.device)
        back = layer.query_positions()[:, None] - keys
        inside = torch.ones_like(back, dtype=torch.bool)
        if before >= 0:
            inside &= back <= before
        if after >= 0:
            inside &= -back <= after
        return inside[None, None]

    rule = ForbiddenRule(
        check="sliding_window",
        holds="windowed",
        noun="outside",
        where=_where(before, after),
        hint="compare the window's convention: does it count the query itself, is it one-sided?",
        vacuous=f"window={window} covers every key; nothing to judge, use a longer sequence",
    )
    return judge_forbidden(replace(subject, layers=layers), rule, within, atol=atol)


def assert_sliding_window(
    attn: AttentionLike,
    window: int | tuple[int, int],
    *,
    tokens: Any = None,
    mask: Any = None,
    heads: HeadSelection = None,
    atol: float | None = None,
    name: str = "attn",
) -> None:
    """Assert that no query attends beyond its sliding window.

    It says nothing about causality: add `assert_causal` where it is due. In models that alternate
    local and global layers choose the local ones: ``heads=["L0", "L2"]``.

    Args:
        attn: Attention weights in any form that `as_attention` takes.
        window: An integer counts the keys up to the query, the query's own included, as
            ``sliding_window`` in Hugging Face configurations does: ``|query - key| < window``. A
            pair ``(before, after)`` says how many keys before and after its own a query may see,
            as ``window_size`` in flash-attention does; -1 is no limit.
        tokens: Strings or ids, one per key, shown at the worst position. Default: what maps carry.
        mask: Which keys are visible, see `as_visible`; rows that see no key, and rows
            of padding, are left out. Default: what maps carry.
        heads: Which heads: ``"L5H1"``, ``"L5"``, ``3`` (of every layer), ``[(5, 1)]``, or a list.
            Default: all.
        atol: Largest weight allowed outside. Default: by dtype, see `TOLERANCES`, and then a row's
            smaller weights must not add up to more than rounding allows either.
        name: What the message calls the attention.

    Raises:
        CheckFailure: A key outside has a weight above ``atol``; or a row that counts holds NaN.
        ValueError: The window covers every key, or is no window.
        TypeError: ``window`` is neither an integer nor a pair of them.

    Example:
        >>> import torch
        >>> weights = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.4, 0.4]])
        >>> assert_sliding_window(weights, window=2)
        Traceback (most recent call last):
        attncheck.CheckFailure: not windowed: 1 of 2 outside weights > 1e-05
        ...
    """
    __tracebackhide__ = True
    raise_if_failed(
        check_sliding_window(
            attn, window, tokens=tokens, mask=mask, heads=heads, atol=atol, name=name
        )
    )


def require_window(window: Any) -> int:
    """Return a window that counts keys, the query's own included.

    Raises:
        TypeError: It is no integer.
        ValueError: It leaves out the query's own key.
    """
    size = whole_number(window, "window", "an integer, a number of keys")
    if size < 1:
        raise ValueError(f"window: got {size}; a query sees 1 key at least, its own")
    return size


def _reach(window: Any) -> tuple[int, int]:
    """Turn the window into keys before and after the query's own, -1 for no limit."""
    pair = tuple(window) if isinstance(window, tuple | list) else (window,)
    if len(pair) not in (1, 2):
        raise TypeError(f"window: got {window!r}; expected {WHAT}")
    sizes = [whole_number(size, "window", WHAT) for size in pair]
    if len(sizes) == 1:
        size = require_window(sizes[0])
        return size - 1, size - 1
    if min(sizes) < -1:
        raise ValueError(f"window: got {window}; expected numbers of keys, or -1 for no limit")
    return sizes[0], sizes[1]


def _where(before: int, after: int) -> str:
    if before == after:
        return f"|query - key| > {before}"
    sides = [f"query - key > {before}"] * (before >= 0) + [f"key - query > {after}"] * (after >= 0)
    return " or ".join(sides)
