"""Mistakes as they were reported: each mutant does what a linked issue or fix describes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.conformance.mutants.base import Steps, mutant, put, steps
from tests.conformance.mutants.tiled import BLOCK, tiled
from tests.conformance.mutants.tiled import RIGHT as TILED

GH = "https://github.com/"
RIGHT = Steps()


# --- masks ---------------------------------------------------------------------------------------
def _first_head_only(c: Any) -> None:
    shared = c.mask.dim() < 3 or c.mask.shape[-3] == 1
    if c.dtype != torch.float16 or c.q.dim() < 3 or not shared:
        return RIGHT.apply_mask(c)
    free = c.scores.clone()
    RIGHT.apply_mask(c)
    c.scores = torch.cat([c.scores[..., :1, :, :], free[..., 1:, :, :]], -3)


steps(
    "mask-broadcast-first-head-half",
    "mask",
    GH + "tracel-ai/burn/issues/4778",
    apply_mask=_first_head_only,
)


def _filled(c: Any, low: float) -> None:
    if c.mask.dtype == torch.bool:
        c.scores = c.scores + (~c.mask).to(c.scores.dtype) * low
    else:
        c.scores = c.scores + c.mask.clamp_min(low)


steps(
    "mask-minus-ten-thousand",
    "mask",
    GH + "huggingface/transformers/pull/17306",
    apply_mask=lambda c: _filled(c, -1e4),
)


def _beyond(c: Any) -> None:
    if c.S <= 1024 or c.mask.shape[-1] == 1:
        return RIGHT.apply_mask(c)
    wrapped = c.mask.expand(*c.mask.shape[:-1], c.S)[..., torch.arange(c.S) % 1024]
    c.mask = wrapped
    RIGHT.apply_mask(c)


steps("mask-long-keys", "mask", GH + "pytorch/pytorch/issues/162588", apply_mask=_beyond)


def _repeated(c: Any) -> None:
    if c.q.dim() == 4 and c.mask.dim() == 4 and c.mask.shape[0] == c.B > 1 == c.mask.shape[1]:
        tiles = c.mask.expand(c.B, 1, *c.mask.shape[2:]).repeat(c.H, 1, 1, 1)
        c.mask = tiles.reshape(c.B, c.H, *c.mask.shape[2:])
    RIGHT.apply_mask(c)


steps("mask-repeated-over-heads", "mask", GH + "reczoo/FuxiCTR/issues/130", apply_mask=_repeated)


def _not_permuted(c: Any) -> None:
    if c.q.dim() == 4 and c.mask.dim() == 4 and c.mask.shape[:2] == (c.B, c.H):
        c.mask = c.mask.transpose(0, 1).reshape(c.mask.shape)
    RIGHT.apply_mask(c)


steps("mask-not-permuted", "mask", GH + "sooftware/attentions/issues/4", apply_mask=_not_permuted)


def _cut_for_one(c: Any) -> None:
    if c.L == 1 and c.mask.shape[-1] > 1:
        c.mask = c.mask[..., :1]
    RIGHT.apply_mask(c)


steps(
    "mask-cut-for-one-query",
    "mask",
    GH + "rasbt/LLMs-from-scratch/pull/697",
    apply_mask=_cut_for_one,
)


def _first_partition(c: Any) -> None:
    if c.mask.dtype == torch.bool and c.S > 64 and c.mask.shape[-1] == c.S:
        c.mask = c.mask[..., torch.arange(c.S) % 64]
    RIGHT.apply_mask(c)


steps(
    "mask-of-first-partition",
    "mask",
    GH + "tracel-ai/cubecl/pull/1027",
    apply_mask=_first_partition,
)


# --- softmax -------------------------------------------------------------------------------------
def _floored(c: Any) -> Tensor:
    peak = c.scores.amax(-1, keepdim=True) if c.S else c.scores.sum(-1, keepdim=True)
    powers = torch.exp(c.scores - peak.masked_fill(peak == -torch.inf, 0)).clamp_min(1e-6)
    weights: Tensor = powers / powers.sum(-1, keepdim=True)
    return weights.masked_fill((c.scores == -torch.inf).all(-1, keepdim=True), 0)


steps("softmax-exp-floor", "softmax", GH + "torch-spyre/torch-spyre/pull/4522", softmax=_floored)


def _one_more(c: Any) -> Tensor:
    peak = c.scores.amax(-1, keepdim=True) if c.S else c.scores.sum(-1, keepdim=True)
    powers = torch.exp(c.scores - peak.masked_fill(peak == -torch.inf, 0))
    weights: Tensor = powers / (1 + powers.sum(-1, keepdim=True))
    return weights


steps(
    "softmax-off-by-one",
    "softmax",
    GH + "kyegomez/AttentionIsOFFByOne/issues/2",
    softmax=_one_more,
)


def _lazy(c: Any, start: int, end: int) -> None:
    """The old maximum is kept while it grows by less than 8, and forgotten in the sum."""
    scores = c.scores[..., start:end]
    new = torch.maximum(c.peak, scores.amax(-1, keepdim=True))
    small = (new - c.peak < 8) & (c.peak > -torch.inf)
    safe = new.masked_fill(new == -torch.inf, 0)
    powers = torch.exp(scores - safe)
    old = torch.exp(c.peak - safe).masked_fill(small, 1.0)
    c.total = c.total * old + powers.sum(-1, keepdim=True)
    c.sum, c.peak = c.sum * old + powers @ c.v[..., start:end, :], new


tiled("tile-lazy-rescale", "tile", GH + "Dao-AILab/flash-attention/pull/2083", block=_lazy)


def _stale(c: Any) -> Tensor:
    output = TILED.__class__.combine(TILED, c)
    if c.L > 2 * BLOCK:
        late = output[..., 2 * BLOCK :, :] + output[..., : c.L - 2 * BLOCK, :]
        output = torch.cat([output[..., : 2 * BLOCK, :], late], -2)
    return output


tiled("tile-stale-accumulator", "tile", GH + "flashinfer-ai/flashinfer/pull/5029", combine=_stale)


def _scaled_twice(c: Any) -> Tensor:
    if c.S < 8:
        return TILED.__class__.combine(TILED, c)
    outputs, sums = [], []
    for part in (slice(0, c.S // 2), slice(c.S // 2, None)):
        scores = c.scores[..., part]
        empty = (scores == -torch.inf).all(-1, keepdim=True)
        safe = scores.masked_fill(empty, 0)
        outputs.append(torch.softmax(safe, -1).masked_fill(empty, 0) @ c.v[..., part, :])
        peak = safe.amax(-1, keepdim=True)
        total = (safe - peak).exp().sum(-1, keepdim=True)
        sums.append((peak * c.factor + total.log()).masked_fill(empty, -torch.inf))
    stacked = torch.stack(sums)
    nothing = (stacked == -torch.inf).all(0, keepdim=True)
    shares = torch.softmax(stacked.masked_fill(nothing, 0), 0)
    found: Tensor = (shares * torch.stack(outputs)).sum(0)
    return found


tiled(
    "merge-maximum-scaled-twice",
    "merge",
    GH + "HKUSTDial/flash-sparse-attention/pull/106",
    combine=_scaled_twice,
)

# --- scale, shapes, heads ------------------------------------------------------------------------
steps(
    "scale-default-is-zero",
    "scale",
    GH + "SKaiNET-developers/SKaiNET/issues/860",
    factor=lambda c: 0.0 if c.scale is None else float(c.scale),
)


def _keys_cut(c: Any) -> None:
    if c.S > c.L > 16 and c.mask is None:
        put(c, k=c.k[..., : c.L, :], v=c.v[..., : c.L, :], S=c.L)


steps("shape-keys-cut-to-queries", "shape", GH + "jax-ml/jax/issues/24491", prepare=_keys_cut)


def _wrong_axis(c: Any) -> None:
    if c.gqa and c.KV:
        n = c.H // c.KV
        for name in "kv":
            x = getattr(c, name)
            longer = x.repeat_interleave(n, -2)
            setattr(c, name, longer.reshape(*x.shape[:-3], c.H, *x.shape[-2:]))


steps("gqa-repeat-over-tokens", "gqa", GH + "ByteDance-Seed/VeOmni/pull/162", group=_wrong_axis)


def _heads_last_value(c: Any) -> None:
    alone = c.q.is_contiguous() and c.k.is_contiguous() and not c.v.is_contiguous()
    if alone and c.v.dim() > 2 and c.v.transpose(-3, -2).is_contiguous():
        c.v = c.v.transpose(-3, -2).reshape(c.v.shape)


steps(
    "layout-value-heads-last", "layout", GH + "ROCm/pytorch/issues/3230", prepare=_heads_last_value
)


def _combine_strides(c: Any) -> Any:
    last = c.q.dim() > 2 and not c.q.is_contiguous() and c.q.transpose(-3, -2).is_contiguous()
    if last and c.H > 1 and c.L > 1 and c.S > 16:
        return c.output.transpose(-3, -2).reshape(c.output.shape)
    return c.output


steps(
    "layout-combine-strides", "layout", GH + "flagos-ai/FlagGems/issues/5235",
    finish=_combine_strides,
)  # fmt: skip

# --- memory --------------------------------------------------------------------------------------
steps(
    "state-workspace-not-cleared",
    "state",
    GH + "flashinfer-ai/flashinfer/issues/1046",
    finish=lambda c: c.output + 0 * torch.empty_like(c.output.detach()),
)

# --- weights -------------------------------------------------------------------------------------
steps(
    "weights-nan-in-empty-rows",
    "weights",
    GH + "pytorch/pytorch/issues/160064",
    True,
    finish=lambda c: (c.output, torch.softmax(c.scores, -1)),
)


# --- gradients -----------------------------------------------------------------------------------
class _Backward(torch.autograd.Function):
    """Attention without dropout and masks' gradient, whose backward pass has a fault."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, factor: float, fault: str
    ) -> Tensor:
        group = q.shape[-3] // max(k.shape[-3], 1) if q.dim() > 2 else 1
        keys, values = (x.repeat_interleave(group, -3) if group > 1 else x for x in (k, v))
        scores = q @ keys.mT * factor + bias
        empty = (scores == -torch.inf).all(-1, keepdim=True)
        weights = torch.softmax(scores.masked_fill(empty, 0), -1).masked_fill(empty, 0)
        ctx.save_for_backward(q, keys, values, weights)
        ctx.factor, ctx.fault, ctx.group, ctx.bias = factor, fault, group, bias.shape
        return weights @ values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, weights = ctx.saved_tensors
        size = q.shape[-1] if ctx.fault == "value features" else v.shape[-1]
        towards = grad[..., :size] @ v[..., :size].mT
        inner = weights * (towards - (towards * weights).sum(-1, keepdim=True))
        if ctx.fault == "not causal" and bool((weights.triu(1) != 0).any()):
            inner = weights * towards
        dq, dk, dv = inner @ k * ctx.factor, inner.mT @ q * ctx.factor, weights.mT @ grad
        if ctx.fault == "rows left" and dk.shape[-2] % 16:
            dk = torch.cat([dk[..., :-1, :], torch.empty_like(dk[..., -1:, :])], -2)
        if ctx.group > 1:
            split = (ctx.group, -1) if ctx.fault == "heads swapped" else (-1, ctx.group)
            axis = -4 if ctx.fault == "heads swapped" else -3
            dk, dv = (x.unflatten(-3, split).sum(axis) for x in (dk, dv))
        if ctx.fault == "bias mean" and inner.shape != ctx.bias:
            dbias = inner.sum_to_size(ctx.bias) * (torch.Size(ctx.bias).numel() / inner.numel())
        else:
            dbias = inner.sum_to_size(ctx.bias)
        return dq, dk, dv, dbias, None, None


def _with_fault(fault: str) -> Callable[..., Any]:
    from tests.conformance.implementations import bias_of

    def attention(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False,
        scale: Any = None, enable_gqa: bool = False,
    ) -> Any:  # fmt: skip
        factor = float(q.shape[-1] ** -0.5 if scale is None else scale)
        bias = bias_of(q, k, attn_mask, is_causal, q.dtype)
        return _Backward.apply(q, k, v, bias, factor, fault)

    return attention


for _fault, _source in (
    ("value features", "XunhaoLai/native-sparse-attention-triton/issues/27"),
    ("heads swapped", "XunhaoLai/native-sparse-attention-triton/issues/27"),
    ("not causal", "triton-lang/triton/issues/5660"),
    ("rows left", "fla-org/flash-linear-attention/pull/892"),
    ("bias mean", "HKUSTDial/flash-sparse-attention/pull/193"),
):
    mutant(f"gradient-{_fault.replace(' ', '-')}", "gradient", GH + _source)(
        lambda fault=_fault: _with_fault(fault)
    )
