"""No query attends to a key of another segment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attncheck.attention import AttentionLike, LayerAttention
from attncheck.attention.light import on_one_thread_if_light
from attncheck.checks.door import raise_if_failed
from attncheck.checks.finding import Finding
from attncheck.checks.forbidden import ForbiddenRule, judge_forbidden, require_positions
from attncheck.checks.select import HeadSelection
from attncheck.checks.subject import open_subject

__all__ = ["assert_segments_isolated", "check_segments_isolated"]


@on_one_thread_if_light
def check_segments_isolated(
    attn: AttentionLike,
    segment_ids: Any,
    *,
    tokens: Any = None,
    mask: Any = None,
    heads: HeadSelection = None,
    atol: float | None = None,
    name: str = "attn",
) -> Finding:
    """Find weights across segments; arguments and errors as `assert_segments_isolated`."""
    subject = open_subject(attn, tokens=tokens, mask=mask, heads=heads, name=name)
    layers = require_positions(subject, "divide into segments")
    segments = _as_ids(segment_ids, layers)

    def together(layer: LayerAttention) -> Tensor:
        ids = segments.to(layer.weights.device)
        own = ids[:, layer.query_positions()]
        return (own[:, :, None] == ids[:, None, :])[:, None]

    rule = ForbiddenRule(
        check="segments_isolated",
        holds="isolated",
        noun="foreign",
        where="segment[key] != segment[query]",
        hint="mask by segment (a packed batch needs a block-diagonal mask)",
        vacuous="segment_ids name one segment only; nothing to judge",
    )
    return judge_forbidden(replace(subject, layers=layers), rule, together, atol=atol)


def assert_segments_isolated(
    attn: AttentionLike,
    segment_ids: Any,
    *,
    tokens: Any = None,
    mask: Any = None,
    heads: HeadSelection = None,
    atol: float | None = None,
    name: str = "attn",
) -> None:
    """Assert that no query attends to a key of another segment, as packed sequences demand.

    Args:
        attn: Attention weights in any form that `as_attention` takes.
        segment_ids: Integers ``(key,)`` or ``(batch, key)``: equal for tokens that may see each
            other. Padding is a segment like any other, unless ``mask`` hides it.
        tokens: Strings or ids, one per key, shown at the worst position. Default: what maps carry.
        mask: Which keys are visible, see `as_visible`; rows that see no key, and rows
            of padding, are left out. Default: what maps carry.
        heads: Which heads: ``"L5H1"``, ``"L5"``, ``3`` (of every layer), ``[(5, 1)]``, or a list.
            Default: all.
        atol: Largest weight allowed on another segment. Default: by dtype, see `TOLERANCES`, and
            then a row's smaller weights must not add up to more than rounding allows either.
        name: What the message calls the attention.

    Raises:
        CheckFailure: A key of another segment has a weight above ``atol``; or a row that counts
            holds NaN.
        ValueError: There is one segment only, or ``segment_ids`` does not fit.

    Example:
        >>> import torch
        >>> packed = torch.block_diag(torch.full((2, 2), 0.5), torch.full((3, 3), 1 / 3))
        >>> assert_segments_isolated(packed, [0, 0, 1, 1, 1])
        >>> assert_segments_isolated(packed, [0, 0, 0, 1, 1])
        Traceback (most recent call last):
        attncheck.CheckFailure: not isolated: 4 of 12 foreign weights > 1e-05
        ...
    """
    __tracebackhide__ = True
    raise_if_failed(
        check_segments_isolated(
            attn, segment_ids, tokens=tokens, mask=mask, heads=heads, atol=atol, name=name
        )
    )


def _as_ids(segment_ids: Any, layers: tuple[LayerAttention, ...]) -> Tensor:
    """Turn segment ids into ``(batch or 1, key)``, checked against every layer."""
    try:
        ids = torch.as_tensor(segment_ids).detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"segment_ids: got {type(segment_ids).__name__}; expected integers (key,) or "
            "(batch, key), one id per key"
        ) from None
    given = tuple(ids.shape)
    if ids.is_floating_point() or ids.is_complex():
        raise TypeError(f"segment_ids: is {ids.dtype}; expected integers")
    ids = ids[None] if ids.ndim == 1 else ids
    for layer in layers:
        fits = ids.ndim == 2 and ids.shape[0] in (1, layer.batch) and ids.shape[1] == layer.n_key
        if not fits:
            raise ValueError(
                f"segment_ids: shape {given}; expected "
                f"({layer.n_key},) or ({layer.batch}, {layer.n_key}), one id per key"
            )
    return ids
