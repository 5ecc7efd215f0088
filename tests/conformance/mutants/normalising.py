"""Scores that become the wrong weights: softmax, dropout, and the weights returned."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from tests.conformance.mutants.base import Steps, put, steps

OFF = Steps()

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
    softmax=lambda c: OFF.softmax(put(c, scores=c.scores.clamp(max=50))),
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
    softmax=lambda c: OFF.softmax(put(c, scores=c.scores.bfloat16())).to(c.dtype),
)
steps(
    "softmax-exp2",
    "softmax",
    "no report; log2(e) rounded to 1.44",
    softmax=lambda c: _divide(torch.exp2((c.scores - _peak(c.scores)) * 1.44)),
)
steps(
    "base-two-overflow",
    "softmax",
    "https://github.com/pytorch/pytorch/issues/110213",
    softmax=lambda c: _base_two(c.scores),
)
steps(
    "softmax-causal-normaliser",
    "softmax",
    "no report; the sum runs over hidden keys too",
    hide=lambda c: (put(c, free=c.scores), OFF.hide(c)),
    softmax=lambda c: torch.softmax(c.free, -1).masked_fill(c.scores == -torch.inf, 0),
)

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
    softmax=lambda c: OFF.softmax(put(c, scores=F.dropout(c.scores, c.p) if c.p else c.scores)),
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
    hide=lambda c: (put(c, free=c.scores), OFF.hide(c)),
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


def _peak(scores: Any) -> Any:
    peak = scores.amax(-1, keepdim=True) if scores.shape[-1] else scores.sum(-1, keepdim=True)
    return peak.masked_fill(peak == -torch.inf, 0)


def _divide(powers: Any) -> Any:
    total = powers.sum(-1, keepdim=True)
    return powers / total.masked_fill(total == 0, 1)


def _base_two(scores: Any) -> Any:
    scores = scores * math.log2(math.e)
    empty = (scores == -torch.inf).all(-1, keepdim=True)
    safe = scores.masked_fill(empty, 0)
    powers = torch.exp2(safe - safe.amax(-1, keepdim=True)).masked_fill(empty, 0)
    return powers / powers.sum(-1, keepdim=True).masked_fill(empty, 1)


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
