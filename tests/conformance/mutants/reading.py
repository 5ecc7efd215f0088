"""Heads, memory and blocks read in the wrong place."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from tests.conformance.mutants.base import Steps, put, steps

GH = "https://github.com/"
PT = "https://github.com/pytorch/pytorch/issues/"
OFF = Steps()

steps(
    "gqa-repeat",
    "gqa",
    GH + "onnx/onnx/pull/7274",
    group=lambda c: _grouped(c, lambda x, n: x.repeat(*([1] * (x.dim() - 3)), n, 1, 1)),
)
steps(
    "gqa-first-head",
    "gqa",
    GH + "EricLBuehler/candle-vllm/pull/52",
    group=lambda c: _grouped(
        c, lambda x, n: x[..., :1, :, :].expand(*x.shape[:-3], x.shape[-3] * n, *x.shape[-2:])
    ),
)
steps(
    "gqa-values-by-repeat",
    "gqa",
    "https://github.com/ekzhang/jax-js/pull/180",
    group=lambda c: (
        put(
            c,
            k=c.k.repeat_interleave(c.H // max(c.KV, 1), -3),
            v=c.v.repeat(*([1] * (c.v.dim() - 3)), c.H // max(c.KV, 1), 1, 1),
        )
        if c.gqa
        else None
    ),
)
steps(
    "gqa-ratio-two",
    "gqa",
    "no report; ratio by shift: 3 heads per group are taken for 2",
    group=lambda c: (
        put(
            c,
            **{
                x: getattr(c, x).index_select(-3, (torch.arange(c.H) // 2).clamp_max(c.KV - 1))
                for x in "kv"
            },
        )
        if c.gqa and c.KV
        else None
    ),
)
steps(
    "gqa-mask-of-kv-head",
    "gqa",
    "no report; common slip",
    apply_mask=lambda c: OFF.apply_mask(
        put(
            c,
            mask=c.mask.index_select(-3, torch.arange(c.H) // (c.H // c.KV))
            if c.mask.dim() > 2 and c.mask.shape[-3] == c.H and c.gqa
            else c.mask,
        )
    ),
)

steps("layout-view-of-storage", "layout", PT + "112577", prepare=lambda c: _reread(c, "kv"))
steps(
    "layout-value-contiguous",
    "layout",
    GH + "flagos-ai/FlagGems/issues/5896",
    prepare=lambda c: _reread(c, "v"),
)
steps(
    "layout-last-stride-one",
    "layout",
    GH + "pytorch/pytorch/pull/187506",
    prepare=lambda c: _unit(c),
)
steps(
    "layout-offset-ignored", "layout", "no report; common slip", prepare=lambda c: _zero_offset(c)
)
steps(
    "layout-transposed-output",
    "layout",
    "no report; reshape instead of transpose",
    finish=lambda c: (
        c.output.transpose(-3, -2).reshape(c.output.shape) if c.output.dim() > 2 else c.output
    ),
)

for _block in (16, 64, 128):
    steps(
        f"shape-last-block-{_block}",
        "shape",
        "https://github.com/66RING/tiny-flash-attention/issues/12",
        prepare=lambda c, n=_block: _cut(c, c.S // n * n) if n < c.S and c.mask is None else None,
    )
steps(
    "shape-pad-not-hidden",
    "shape",
    "https://github.com/flashinfer-ai/flashinfer/pull/5090",
    prepare=lambda c: _pad_keys(c) if c.mask is None and not c.causal else None,
)
steps(
    "shape-head-padded-lost",
    "shape",
    "no report; features beyond a multiple of 8 are dropped",
    prepare=lambda c: (
        put(c, q=c.q[..., : c.E // 8 * 8], k=c.k[..., : c.E // 8 * 8]) if c.E > 8 else None
    ),
)
steps(
    "shape-single-query",
    "shape",
    "no report; L = 1 squeezed, then broadcast wrongly",
    prepare=lambda c: put(c, k=c.k.flip(-2)) if c.L == 1 else None,
)
steps(
    "shape-2048-limit",
    "shape",
    "no report; a shared buffer of 2,048 scores",
    prepare=lambda c: _cut(c, 2048) if c.S > 2048 and c.mask is None else None,
)
steps(
    "shape-batch-65535",
    "shape",
    "https://github.com/flashinfer-ai/flashinfer/issues/3125",
    finish=lambda c: (
        torch.cat([c.output[:65535], torch.zeros_like(c.output[65535:])])
        if c.output.dim() == 4
        else c.output
    ),
)
steps(
    "shape-value-size",
    "shape",
    "no report; output allocated with the query's head size",
    finish=lambda c: c.output[..., : c.E] if c.Ev > c.E else c.output,
)
steps(
    "shape-split-k",
    "shape",
    PT + "191937",
    prepare=lambda c: (
        put(c, v=torch.cat([c.v[..., :-1, :], c.v[..., -2:-1, :]], -2))
        if c.S % 32 == 1 and c.S > 1 and c.mask is not None
        else None
    ),
)


def _grouped(c: Any, repeat: Any) -> None:
    if c.gqa:
        n = c.H // max(c.KV, 1)
        c.k, c.v = repeat(c.k, n), repeat(c.v, n)


def _reread(c: Any, names: str) -> None:
    for name in names:
        x = getattr(c, name)
        need = (x.storage_offset() + x.numel()) * x.element_size()
        if not x.is_contiguous() and x.untyped_storage().nbytes() >= need:
            dense = torch.as_strided(x, x.shape, torch.empty(x.shape).stride(), x.storage_offset())
            setattr(c, name, dense)


def _unit(c: Any) -> None:
    for name in "qkv":
        x = getattr(c, name)
        if x.stride(-1) != 1 and x.shape[-1] > 1:
            strides = (*x.stride()[:-1], 1)
            need = (
                x.storage_offset()
                + 1
                + sum((n - 1) * s for n, s in zip(x.shape, strides, strict=True))
            )
            if need * x.element_size() <= x.untyped_storage().nbytes():
                setattr(c, name, torch.as_strided(x, x.shape, strides, x.storage_offset()))


def _zero_offset(c: Any) -> None:
    for name in "qkv":
        x = getattr(c, name)
        if x.storage_offset():
            setattr(c, name, torch.as_strided(x, x.shape, x.stride(), 0))


def _cut(c: Any, length: int) -> None:
    c.k, c.v, c.S = c.k[..., :length, :], c.v[..., :length, :], length


def _pad_keys(c: Any) -> None:
    extra = -c.S % 8
    c.k, c.v = F.pad(c.k, (0, 0, 0, extra)), F.pad(c.v, (0, 0, 0, extra))
    c.S += extra
