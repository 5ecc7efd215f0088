"""`scaled_dot_product_attention` and `flex_attention`, called in every way they allow."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention as early

from tests.capture.plain_torch.case import HEADS, LENGTH, Attending, Case, attending, past

FIVE = 5
"""Another sequence's length."""


def band(b: int, h: int, i: int, j: int) -> bool:
    return abs(i - j) <= 1


def headed(b: int, h: int, i: int, j: int) -> bool:
    return j <= i + h


def padded(b: int, h: int, i: int, j: int) -> bool:
    return j < LENGTH - 2 * b


def table(sees: object, *, batch: int = 2) -> Tensor:
    """Bool ``(batch, head, query, key)`` of a rule."""
    assert callable(sees)
    grid = [
        [[[sees(b, h, i, j) for j in range(LENGTH)] for i in range(LENGTH)] for h in range(HEADS)]
        for b in range(batch)
    ]
    return torch.tensor(grid)


def distance(b: int, h: int, i: int, j: int) -> float:
    return -abs(i - j) / 2**h


def distances() -> Tensor:
    grid = [
        [[distance(0, h, i, j) for j in range(LENGTH)] for i in range(LENGTH)] for h in range(HEADS)
    ]
    return torch.tensor(grid)


def additive(visible: Tensor) -> Tensor:
    return torch.zeros(visible.shape).masked_fill(~visible, -math.inf)


def in_3d(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    folded = F.scaled_dot_product_attention(*(t.flatten(0, 1) for t in (q, k, v)))
    return folded.unflatten(0, (2, HEADS))


def in_5d(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*(t[None] for t in (q, k, v)))[0]


def one_by_one(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=None)


def in_math(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v)


def rule_past(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return i >= j


def flex_causal(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    block_mask = create_block_mask(rule_past, None, None, LENGTH, LENGTH, device="cpu")
    return _flex(q, k, v, block_mask=block_mask)


def flex_alibi(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    def score(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score - (i - j).abs() / 2.0**h

    return _flex(q, k, v, score_mod=score)


def flex_twice(m: Attending, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _flex(q, k, v, enable_gqa=True, scale=0.3)


def _flex(q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
    out = flex_attention(q, k, v, **options)  # type: ignore[arg-type]
    assert isinstance(out, Tensor)
    return out


attend = F.scaled_dot_product_attention

SDPA: dict[str, Case] = {
    "plain": attending(lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v)),
    "keywords": attending(one_by_one),
    "early import": attending(lambda m, q, k, v: early(q, k, v)),
    "torch._C._nn": attending(
        lambda m, q, k, v: torch._C._nn.scaled_dot_product_attention(q, k, v)
    ),
    "causal": attending(lambda m, q, k, v: attend(q, k, v, is_causal=True), sees=past),
    "bool mask": attending(
        lambda m, q, k, v: attend(q, k, v, attn_mask=table(band)[0, 0]), sees=band
    ),
    "additive mask": attending(
        lambda m, q, k, v: attend(q, k, v, attn_mask=additive(table(band))), sees=band
    ),
    "mask by head": attending(
        lambda m, q, k, v: attend(q, k, v, attn_mask=table(headed)[:1]), sees=headed
    ),
    "mask of three axes": attending(
        lambda m, q, k, v: attend(q, k, v, attn_mask=table(headed)[0]), sees=headed
    ),
    "padding mask": attending(
        lambda m, q, k, v: attend(q, k, v, attn_mask=table(padded)[:, :1, :1]), sees=padded
    ),
    "rows that see nothing": attending(
        lambda m, q, k, v: attend(q, k, v, attn_mask=table(lambda b, h, i, j: j < i)),
        sees=lambda b, h, i, j: j < i,
    ),
    "bias": attending(lambda m, q, k, v: attend(q, k, v, attn_mask=distances()), bias=distance),
    "scale": attending(lambda m, q, k, v: attend(q, k, v, scale=0.3), scale=0.3),
    "grouped heads": attending(lambda m, q, k, v: attend(q, k, v, enable_gqa=True), kv_heads=2),
    "one key head": attending(lambda m, q, k, v: attend(q, k, v, enable_gqa=True), kv_heads=1),
    "value of another size": attending(lambda m, q, k, v: attend(q, k, v), value_size=3),
    "cross": attending(lambda m, q, k, v: attend(q, k, v), lengths=(LENGTH, FIVE)),
    "causal, more keys": attending(
        lambda m, q, k, v: attend(q, k, v, is_causal=True), lengths=(FIVE, LENGTH), sees=past
    ),
    "causal, more queries": attending(
        lambda m, q, k, v: attend(q, k, v, is_causal=True), lengths=(LENGTH, FIVE), sees=past
    ),
    "lower right bias": attending(
        lambda m, q, k, v: attend(q, k, v, attn_mask=causal_lower_right(FIVE, LENGTH)),  # type: ignore[arg-type]
        lengths=(FIVE, LENGTH),
        sees=lambda b, h, i, j: j <= i + 1,
    ),
    "upper left bias": attending(
        lambda m, q, k, v: attend(q, k, v, attn_mask=causal_upper_left(FIVE, LENGTH)),  # type: ignore[arg-type]
        lengths=(FIVE, LENGTH),
        sees=past,
    ),
    "3-D": attending(in_3d),
    "5-D": attending(in_5d),
    "math kernel": attending(in_math),
    "dropout while training": attending(
        lambda m, q, k, v: attend(q, k, v, dropout_p=0.4), train=True
    ),
    "bfloat16": attending(lambda m, q, k, v: attend(q, k, v), dtype=torch.bfloat16),
    "float64": attending(lambda m, q, k, v: attend(q, k, v), dtype=torch.float64, atol=1e-12),
    "one token": attending(lambda m, q, k, v: attend(q, k, v, is_causal=True), lengths=(1,)),
    "one query": attending(lambda m, q, k, v: attend(q, k, v), lengths=(1, LENGTH)),
}
FLEX: dict[str, Case] = {
    "flex": attending(lambda m, q, k, v: _flex(q, k, v)),
    "flex, scale": attending(lambda m, q, k, v: _flex(q, k, v, scale=0.3), scale=0.3),
    "flex, causal block mask": attending(flex_causal, sees=past),
    "flex, score function": attending(flex_alibi, bias=distance),
    "flex, grouped heads": attending(flex_twice, kv_heads=2, scale=0.3),
}
