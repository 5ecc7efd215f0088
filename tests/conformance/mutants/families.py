"""Wrong implementations, by family, each with the report in which the mistake was real."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from tests.conformance.mutants.base import Steps, mutant, steps

GH = "https://github.com/"
PT = GH + "pytorch/pytorch/issues/"
FA = GH + "Dao-AILab/flash-attention/issues/"
OFF = Steps()

# --- scale -------------------------------------------------------------------------------------
steps(
    "scale-missing",
    "scale",
    "https://github.com/mlc-ai/mlc-llm/pull/3426",
    factor=lambda c: 1.0 if c.scale is None else float(c.scale),
)
steps(
    "scale-one-over-d",
    "scale",
    "no report; muP's 1/d taken for 1/sqrt(d)",
    factor=lambda c: 1 / c.E if c.scale is None else float(c.scale),
)
steps(
    "scale-ignored",
    "scale",
    "https://github.com/NVIDIA/Megatron-LM/pull/3698",
    factor=lambda c: c.E**-0.5,
)
steps(
    "scale-padded-head",
    "scale",
    "https://github.com/bytedance-iaas/sglang/pull/485",
    factor=lambda c: (-(-c.E // 8) * 8) ** -0.5 if c.scale is None else float(c.scale),
)
steps(
    "scale-of-value-size",
    "scale",
    "no report; common slip",
    factor=lambda c: c.Ev**-0.5 if c.scale is None else float(c.scale),
)
steps(
    "scale-zero-is-none",
    "scale",
    "https://github.com/SKaiNET-developers/SKaiNET/pull/880",
    factor=lambda c: float(c.scale or c.E**-0.5),
)
steps(
    "scale-on-top",
    "scale",
    "no report; common slip",
    factor=lambda c: c.E**-0.5 * (1 if c.scale is None else float(c.scale)),
)
steps(
    "scale-absolute",
    "scale",
    "no report; sqrt of the scale on query and key each: math.sqrt(abs(scale))",
    factor=lambda c: abs(float(c.E**-0.5 if c.scale is None else c.scale)),
)
steps(
    "scale-hard-64",
    "scale",
    GH + "lucidrains/muse-maskgit-pytorch/issues/40",
    factor=lambda c: 0.125 if c.scale is None else float(c.scale),
)
steps(
    "scale-rounded-half",
    "scale",
    "no report; the scale kept in the inputs' half precision, also for float32",
    factor=lambda c: (
        float(torch.tensor(c.E**-0.5).bfloat16()) if c.scale is None else float(c.scale)
    ),
)

# --- mask --------------------------------------------------------------------------------------
steps(
    "mask-inverted",
    "mask",
    "https://github.com/rasbt/LLMs-from-scratch/issues/1061",
    apply_mask=lambda c: OFF.apply_mask(
        _with(c, mask=~c.mask if c.mask.dtype == torch.bool else c.mask)
    ),
)
steps(
    "mask-bool-added",
    "mask",
    "https://github.com/mlverse/torch/pull/1208",
    apply_mask=lambda c: _set(c, scores=c.scores + c.mask),
)
steps(
    "mask-finite-fill",
    "mask",
    PT + "103749",
    apply_mask=lambda c: _set(
        c,
        scores=c.scores.masked_fill(~c.mask, -1e4 if c.dtype == torch.float16 else -1e9)
        if c.mask.dtype == torch.bool
        else c.scores + c.mask,
    ),
)
steps(
    "mask-after-softmax",
    "mask",
    "no report; weights multiplied by the mask, not renormalised",
    apply_mask=lambda c: None,
    combine=lambda c: (
        (
            c.dropped
            * (1 if c.mask is None else c.mask if c.mask.dtype == torch.bool else c.mask.exp())
        )
        @ c.v
    ),
)
steps(
    "mask-first-head",
    "mask",
    "no report; common slip",
    apply_mask=lambda c: OFF.apply_mask(
        _with(c, mask=c.mask[..., :1, :, :] if c.mask.dim() > 2 else c.mask)
    ),
)
steps(
    "mask-first-batch",
    "mask",
    "no report; common slip",
    apply_mask=lambda c: OFF.apply_mask(_with(c, mask=c.mask[:1] if c.mask.dim() > 3 else c.mask)),
)
steps(
    "mask-float-as-bool",
    "mask",
    "no report; mask.bool() of an additive mask",
    apply_mask=lambda c: _set(c, scores=c.scores.masked_fill(~c.mask.bool(), -torch.inf)),
)
steps(
    "mask-float-numbers-lost",
    "mask",
    "no report; only -inf of a float mask is read",
    apply_mask=lambda c: _set(
        c,
        scores=c.scores.masked_fill(
            ~c.mask if c.mask.dtype == torch.bool else c.mask == -torch.inf, -torch.inf
        ),
    ),
)
steps(
    "mask-before-scale",
    "mask",
    "no report; common slip",
    apply_mask=lambda c: _set(
        c,
        scores=c.scores.masked_fill(~c.mask, -torch.inf)
        if c.mask.dtype == torch.bool
        else c.scores + c.mask * c.factor,
    ),
)
steps("mask-empty-row-nan", "mask", PT + "103963", softmax=lambda c: torch.softmax(c.scores, -1))
steps(
    "mask-empty-row-mean",
    "mask",
    "https://github.com/pytorch/pytorch/issues/103749",
    softmax=lambda c: torch.softmax(c.scores.clamp_min(-1e30), -1),
)
steps(
    "mask-nan-to-num",
    "mask",
    "no report; torch.nan_to_num over the whole output hides real NaN",
    finish=lambda c: c.output.nan_to_num(0.0),
)
steps(
    "mask-contiguous-view",
    "mask",
    "https://github.com/pytorch/pytorch/issues/112577",
    apply_mask=lambda c: OFF.apply_mask(
        _with(
            c,
            mask=torch.as_strided(
                c.mask, c.mask.shape, torch.empty(c.mask.shape).stride(), c.mask.storage_offset()
            )
            if c.mask.untyped_storage().nbytes() >= c.mask.numel() * c.mask.element_size()
            else c.mask,
        )
    ),
)
steps(
    "mask-query-broadcast",
    "mask",
    "no report; a mask of one row is applied to the first query only",
    apply_mask=lambda c: OFF.apply_mask(_with(c, mask=_first_row_only(c))),
)
steps(
    "mask-multiplies-nan",
    "mask",
    PT + "101967",
    apply_mask=lambda c: _set(
        c,
        scores=c.scores * c.mask + (1 - c.mask.to(c.scores.dtype)) * -1e5
        if c.mask.dtype == torch.bool
        else c.scores + c.mask,
    ),
)

# --- causal ------------------------------------------------------------------------------------
steps(
    "causal-bottom-right",
    "causal",
    FA + "517",
    future=lambda c: torch.ones(c.L, c.S, dtype=torch.bool).triu(1 + c.S - c.L),
)
steps(
    "causal-strict",
    "causal",
    "no report; j < i instead of j <= i",
    future=lambda c: torch.ones(c.L, c.S, dtype=torch.bool).triu(0),
)
steps(
    "causal-one-ahead",
    "causal",
    "no report; common slip",
    future=lambda c: torch.ones(c.L, c.S, dtype=torch.bool).triu(2),
)
steps(
    "causal-ignored",
    "causal",
    "https://github.com/facebookresearch/xformers/issues/103",
    future=lambda c: torch.zeros(c.L, c.S, dtype=torch.bool),
)
steps(
    "causal-only-square",
    "causal",
    "https://github.com/gittensor-ai-lab/sparkinfer/issues/3",
    future=lambda c: torch.ones(c.L, c.S, dtype=torch.bool).triu(1 if c.L == c.S else c.S),
)
steps(
    "causal-off-for-one",
    "causal",
    "no report; single queries are taken for decoding: no mask",
    future=lambda c: torch.ones(c.L, c.S, dtype=torch.bool).triu(1 if c.L > 1 else c.S),
)
steps(
    "causal-by-block",
    "causal",
    "no report; diagonal block of 16 left unmasked",
    future=lambda c: (torch.arange(c.S) // 16)[None] > (torch.arange(c.L) // 16)[:, None],
)
steps(
    "causal-last-row-open",
    "causal",
    "no report; loop bound off by one",
    future=lambda c: (
        torch.ones(c.L, c.S, dtype=torch.bool).triu(1) & (torch.arange(c.L) < c.L - 1)[:, None]
    ),
)
steps(
    "causal-drops-mask",
    "causal",
    "https://github.com/AI-Hypercomputer/maxtext/issues/878",
    hide=lambda c: (
        _set(c, scores=c.scores.masked_fill(OFF.future(c), -torch.inf)) if c.causal else OFF.hide(c)
    ),
)

# --- gqa ---------------------------------------------------------------------------------------
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
        _set(
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
        _set(
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
        _with(
            c,
            mask=c.mask.index_select(-3, torch.arange(c.H) // (c.H // c.KV))
            if c.mask.dim() > 2 and c.mask.shape[-3] == c.H and c.gqa
            else c.mask,
        )
    ),
)

# --- softmax -----------------------------------------------------------------------------------
steps(
    "softmax-no-maximum",
    "softmax",
    "https://github.com/pytorch/executorch/pull/18407",
    softmax=lambda c: _divide(c.scores.exp()),
)
steps(
    "softmax-global-maximum",
    "softmax",
    "no report; one maximum for the whole tensor: small rows underflow",
    softmax=lambda c: _divide(
        (
            c.scores - c.scores.masked_fill(c.scores == -torch.inf, -1e30).amax()
            if c.scores.numel()
            else c.scores
        ).exp()
    ),
)
steps(
    "softmax-over-queries",
    "softmax",
    "https://github.com/nerdai/llms-from-scratch-rs/pull/30",
    softmax=lambda c: torch.softmax(c.scores, -2).nan_to_num(0),
)
steps(
    "softmax-one",
    "softmax",
    "no report; softmax1 / quiet attention",
    softmax=lambda c: _one_added(c.scores),
)
steps(
    "softmax-clamped",
    "softmax",
    "no report; logits clamped to +-50 against overflow",
    softmax=lambda c: OFF.softmax(_with(c, scores=c.scores.clamp(max=50))),
)
steps(
    "softmax-epsilon",
    "softmax",
    "no report; 1e-6 added to the sum",
    softmax=lambda c: _epsilon(c.scores, 1e-5),
)
steps(
    "softmax-no-rescale",
    "softmax",
    "no report; FlashAttention, algorithm 1 without line 12",
    softmax=lambda c: _no_rescale(c.scores, 64),
)
steps(
    "softmax-bf16",
    "softmax",
    "no report; common slip",
    softmax=lambda c: OFF.softmax(_with(c, scores=c.scores.bfloat16())).to(c.dtype),
)
steps(
    "softmax-exp2",
    "softmax",
    "no report; log2(e) rounded to 1.44",
    softmax=lambda c: _divide(torch.exp2((c.scores - _peak(c.scores)) * 1.44)),
)
steps(
    "softmax-causal-normaliser",
    "softmax",
    "no report; the sum runs over hidden keys too",
    hide=lambda c: (_set(c, free=c.scores), OFF.hide(c)),
    softmax=lambda c: torch.softmax(c.free, -1).masked_fill(c.scores == -torch.inf, 0),
)

# --- dtype -------------------------------------------------------------------------------------
steps(
    "dtype-float64-in-32",
    "dtype",
    "no report; a float32 accumulator for float64 inputs",
    scores=lambda c: OFF.scores(c).float().to(c.dtype),
)
steps(
    "dtype-float32-in-16",
    "dtype",
    "no report; tensor cores: float32 rounded to half precision",
    combine=lambda c: c.dropped.bfloat16().to(c.dtype) @ c.v.bfloat16().to(c.dtype),
)
steps(
    "dtype-tf32",
    "dtype",
    "no report; torch.backends.cuda.matmul.allow_tf32: 10 bits of mantissa",
    prepare=lambda c: _set(c, q=_tf32(c.q), k=_tf32(c.k)),
)
steps(
    "dtype-output-float32",
    "dtype",
    "no report; common slip",
    finish=lambda c: c.output.float() if c.dtype != torch.float64 else c.output,
)
steps(
    "dtype-half-accumulation",
    "dtype",
    "https://github.com/zhuzilin/ring-flash-attention/issues/22",
    combine=lambda c: _chunked(c, 8),
)
steps(
    "dtype-score-half",
    "dtype",
    "no report; scores stored as float16: they overflow, and round",
    scores=lambda c: (
        OFF.scores(c).half().to(c.dtype) if c.dtype == torch.float32 else OFF.scores(c)
    ),
)

# --- layout ------------------------------------------------------------------------------------
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

# --- shapes ------------------------------------------------------------------------------------
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
        _set(c, q=c.q[..., : c.E // 8 * 8], k=c.k[..., : c.E // 8 * 8]) if c.E > 8 else None
    ),
)
steps(
    "shape-single-query",
    "shape",
    "no report; L = 1 squeezed, then broadcast wrongly",
    prepare=lambda c: _set(c, k=c.k.flip(-2)) if c.L == 1 else None,
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
        _set(c, v=torch.cat([c.v[..., :-1, :], c.v[..., -2:-1, :]], -2))
        if c.S % 32 == 1 and c.S > 1 and c.mask is not None
        else None
    ),
)

# --- dropout -----------------------------------------------------------------------------------
steps(
    "dropout-not-rescaled",
    "dropout",
    "no report; Srivastava et al. 2014 at training, not inverted",
    dropout=lambda c: c.weights * (torch.rand_like(c.weights) >= c.p),
)
steps(
    "dropout-on-output",
    "dropout",
    "https://github.com/nikhilbarhate99/min-decision-transformer/issues/2",
    dropout=lambda c: c.weights,
    finish=lambda c: F.dropout(c.output, c.p),
)
steps(
    "dropout-ignored",
    "dropout",
    "no report; common slip",
    dropout=lambda c: c.weights,
)
steps(
    "dropout-before-softmax",
    "dropout",
    "https://github.com/PaddlePaddle/Parakeet/pull/76",
    softmax=lambda c: OFF.softmax(_with(c, scores=F.dropout(c.scores, c.p) if c.p else c.scores)),
    dropout=lambda c: c.weights,
)
steps(
    "dropout-shared-by-heads",
    "dropout",
    "no report; one random mask for all heads",
    dropout=lambda c: _shared(c),
)
steps(
    "dropout-fixed-seed",
    "dropout",
    "no report; a generator seeded in every call",
    dropout=lambda c: _fixed(c),
)
steps(
    "dropout-half-rate",
    "dropout",
    "no report; p and 1 - p exchanged",
    dropout=lambda c: F.dropout(c.weights, 1 - c.p) if 0 < c.p < 1 else c.weights,
)
steps(
    "dropout-always-a-little",
    "dropout",
    "https://github.com/huggingface/pytorch-image-models/pull/1978",
    dropout=lambda c: F.dropout(c.weights, c.p or 0.01),
)

# --- weights -----------------------------------------------------------------------------------
steps(
    "weights-after-dropout",
    "weights",
    "no report; transformers' eager attention returns them so",
    True,
    finish=lambda c: (c.output, c.dropped),
)
steps(
    "weights-unmasked",
    "weights",
    "no report; common slip",
    True,
    hide=lambda c: (_set(c, free=c.scores), OFF.hide(c)),
    finish=lambda c: (c.output, torch.softmax(c.free, -1)),
)
steps(
    "weights-mean-of-heads",
    "weights",
    "no report; average_attn_weights=True",
    True,
    finish=lambda c: (
        c.output,
        c.weights.mean(-3, keepdim=True).expand(c.weights.shape)
        if c.weights.dim() > 2
        else c.weights,
    ),
)
steps(
    "weights-are-scores",
    "weights",
    "no report; logits returned for weights",
    True,
    finish=lambda c: (c.output, c.scores),
)
steps(
    "weights-per-kv-head",
    "weights",
    "no report; common slip",
    True,
    finish=lambda c: (
        c.output,
        c.weights[..., :: c.H // max(c.KV, 1), :, :] if c.gqa else c.weights,
    ),
)
steps(
    "weights-transposed",
    "weights",
    "no report; key and query axes exchanged",
    True,
    finish=lambda c: (c.output, c.weights.mT.contiguous()),
)


# --- helpers -----------------------------------------------------------------------------------
def _set(c: Any, **changes: Any) -> Any:
    c.__dict__.update(changes)
    return c


def _with(c: Any, **changes: Any) -> Any:
    return _set(c, **changes)


def _first_row_only(c: Any) -> Any:
    if c.mask.shape[-2] > 1 or c.L == 1:
        return c.mask
    shape = (*c.mask.shape[:-2], c.L, c.mask.shape[-1])
    free = torch.ones(shape, dtype=torch.bool) if c.mask.dtype == torch.bool else torch.zeros(shape)
    free = free.to(c.mask.dtype)
    free[..., :1, :] = c.mask
    return free


def _grouped(c: Any, repeat: Any) -> None:
    if c.gqa:
        n = c.H // max(c.KV, 1)
        c.k, c.v = repeat(c.k, n), repeat(c.v, n)


def _peak(scores: Any) -> Any:
    peak = scores.amax(-1, keepdim=True) if scores.shape[-1] else scores.sum(-1, keepdim=True)
    return peak.masked_fill(peak == -torch.inf, 0)


def _divide(powers: Any) -> Any:
    total = powers.sum(-1, keepdim=True)
    return powers / total.masked_fill(total == 0, 1)


def _one_added(scores: Any) -> Any:
    peak = _peak(scores)
    powers = (scores - peak).exp()
    return powers / (powers.sum(-1, keepdim=True) + (-peak).exp())


def _epsilon(scores: Any, epsilon: float) -> Any:
    powers = (scores - _peak(scores)).exp()
    return powers / (powers.sum(-1, keepdim=True) + epsilon)


def _no_rescale(scores: Any, block: int) -> Any:
    parts, sums, peak = [], 0, None
    for start in range(0, scores.shape[-1], block):
        part = scores[..., start : start + block]
        new = part.amax(-1, keepdim=True)
        peak = new if peak is None else torch.maximum(peak, new)
        powers = (part - peak.masked_fill(peak == -torch.inf, 0)).exp()
        parts.append(powers)
        sums = sums + powers.sum(-1, keepdim=True)
    return torch.cat(parts, -1) / sums.masked_fill(sums == 0, 1) if parts else scores


def _tf32(x: Any) -> Any:
    if x.dtype != torch.float32:
        return x
    return (x.detach().contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32) + (
        x - x.detach()
    )


def _chunked(c: Any, size: int) -> Any:
    if c.dtype not in (torch.float16, torch.bfloat16) or c.S == 0:
        return c.dropped @ c.v
    total: Any = 0
    for start in range(0, c.S, size):
        total = total + c.dropped[..., start : start + size] @ c.v[..., start : start + size, :]
    return total


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


def _shared(c: Any) -> Any:
    if not c.p or c.weights.dim() < 3:
        return F.dropout(c.weights, c.p) if c.p else c.weights
    keep = F.dropout(torch.ones_like(c.weights[..., :1, :, :]), c.p)
    return c.weights * keep


def _fixed(c: Any) -> Any:
    if not c.p:
        return c.weights
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(c.weights.shape, generator=generator) >= c.p
    return c.weights * keep / (1 - c.p) if c.p < 1 else c.weights * 0


_ = mutant
