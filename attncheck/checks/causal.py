"""No query attends to a later key."""

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

__all__ = ["assert_causal", "check_causal"]


@on_one_thread_if_light
def check_causal(
    attn: AttentionLike,
    *,
    tokens: Any = None,
    mask: Any = None,
    heads: HeadSelection = None,
    atol: float | None = None,
    name: str = "attn",
) -> Finding:
    """Find weights on later keys; arguments and errors as `assert_causal`."""
    subject = open_subject(attn, tokens=tokens, mask=mask, heads=heads, name=name)
    layers = require_positions(subject, "call causal")
    shifts = {layer.n_key - layer.n_query for layer in layers if not layer.queries}
    shift = f" + {shifts.pop()}" if len(shifts) == 1 and shifts != {0} else ""
    plain = shifts <= {0} and not any(layer.queries for layer in layers)
    rule = ForbiddenRule(
        check="causal",
        holds="causal",
        noun="future",
        where=f"key > query{shift}" if plain else "key is later than query",
        hint="add -inf to the scores of later keys before softmax",
        vacuous=None if _has_order(layers) else "every row is fully masked; nothing to judge",
    )
    return judge_forbidden(replace(subject, layers=layers), rule, _not_later, atol=atol)


def assert_causal(
    attn: AttentionLike,
    *,
    tokens: Any = None,
    mask: Any = None,
    heads: HeadSelection = None,
    atol: float | None = None,
    name: str = "attn",
) -> None:
    """Assert that no query attends to a later key.

    With fewer queries than keys the queries are the last ones (decoding with a cache): query ``i``
    may see keys up to ``i + n_key - n_query``. A single last query has no later key and passes.
    Cross-attention layers have no such order and are left out.

    Args:
        attn: Attention weights in any form that `as_attention` takes.
        tokens: Strings or ids, one per key, shown at the worst position. Default: what maps carry.
        mask: Which keys are visible, see `as_visible`; rows that see no key, and rows
            of padding, are left out. Default: what maps carry.
        heads: Which heads: ``"L5H1"``, ``"L5"``, ``3`` (of every layer), ``[(5, 1)]``, or a list.
            Default: all.
        atol: Largest weight allowed on a later key. Default: by dtype, see `TOLERANCES`, and then
            a row's smaller weights must not add up to more than rounding allows either.
        name: What the message calls the attention.

    Raises:
        CheckFailure: A later key has a weight above ``atol``; or a row that counts holds NaN.
        ValueError: There is no self-attention, or no row to judge.

    Example:
        >>> import torch
        >>> assert_causal(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
        >>> assert_causal(torch.tensor([[0.9, 0.1], [0.5, 0.5]]))
        Traceback (most recent call last):
        attncheck.CheckFailure: not causal: 1 of 1 future weights > 1e-05
        ...
    """
    __tracebackhide__ = True
    raise_if_failed(check_causal(attn, tokens=tokens, mask=mask, heads=heads, atol=atol, name=name))


def _not_later(layer: LayerAttention) -> Tensor:
    keys = torch.arange(layer.n_key, device=layer.weights.device)
    return (keys <= layer.query_positions()[:, None])[None, None]


def _has_order(layers: tuple[LayerAttention, ...]) -> bool:
    """Whether some row sees a key: without any, all is masked and nothing can be said."""
    return any(
        bool((_not_later(layer) & (True if layer.mask is None else layer.mask)).any())
        for layer in layers
    )
