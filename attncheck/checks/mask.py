"""No query attends to a key that the mask hides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attncheck.attention import AttentionLike, LayerAttention
from attncheck.attention.light import on_one_thread_if_light
from attncheck.checks.door import raise_if_failed
from attncheck.checks.finding import Finding
from attncheck.checks.forbidden import ForbiddenRule, judge_forbidden
from attncheck.checks.select import HeadSelection
from attncheck.checks.subject import open_subject

__all__ = ["assert_mask_respected", "check_mask_respected"]


@on_one_thread_if_light
def check_mask_respected(
    attn: AttentionLike,
    mask: Any = None,
    *,
    tokens: Any = None,
    heads: HeadSelection = None,
    atol: float | None = None,
    name: str = "attn",
) -> Finding:
    """Find weights on hidden keys; arguments and errors as `assert_mask_respected`."""
    subject = open_subject(attn, tokens=tokens, mask=mask, heads=heads, name=name)
    if all(layer.mask is None for layer in subject.layers):
        raise ValueError(f"mask: none given, and {name} carries none; pass mask=")
    rule = ForbiddenRule(
        check="mask_respected",
        holds="masked",
        noun="hidden",
        where="mask hides key",
        hint="add -inf to the scores of hidden keys before softmax (not 0, not after)",
        vacuous="the mask hides no key from a row that sees any; nothing to judge",
    )
    return judge_forbidden(subject, rule, _seen, atol=atol)


def assert_mask_respected(
    attn: AttentionLike,
    mask: Any = None,
    *,
    tokens: Any = None,
    heads: HeadSelection = None,
    atol: float | None = None,
    name: str = "attn",
) -> None:
    """Assert that no query attends to a key that the mask hides.

    Rows from which the mask hides every key, and rows of padding (queries whose own key nobody
    sees), are left out: backends fill those as they like. `assert_row_stochastic` judges them.

    Args:
        attn: Attention weights in any form that `as_attention` takes.
        mask: Bool (True = visible), integer (1 = token) or additive (-inf = hidden), of any usual
            shape, see `as_visible`. Default: what maps carry.
        tokens: Strings or ids, one per key, shown at the worst position. Default: what maps carry.
        heads: Which heads: ``"L5H1"``, ``"L5"``, ``3`` (of every layer), ``[(5, 1)]``, or a list.
            Default: all.
        atol: Largest weight allowed on a hidden key. Default: by dtype, see `TOLERANCES`, and then
            a row's smaller weights must not add up to more than rounding allows either.
        name: What the message calls the attention.

    Raises:
        CheckFailure: A hidden key has a weight above ``atol``; or a row that counts holds NaN.
        ValueError: There is no mask, it hides nothing, or its shape does not fit.

    Example:
        >>> import torch
        >>> assert_mask_respected(torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([1, 1, 0]))
        >>> assert_mask_respected(torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([1, 1, 0]))
        Traceback (most recent call last):
        attncheck.CheckFailure: not masked: 1 of 1 hidden weights > 1e-05
        ...
    """
    __tracebackhide__ = True
    raise_if_failed(
        check_mask_respected(attn, mask, tokens=tokens, heads=heads, atol=atol, name=name)
    )


def _seen(layer: LayerAttention) -> Tensor:
    if layer.mask is None:
        return torch.ones((1, 1, 1, layer.n_key), dtype=torch.bool, device=layer.weights.device)
    return layer.mask
