"""Keys that are hidden by mistake, and keys that are not hidden: masks and causality."""

from __future__ import annotations

from typing import Any

import torch

from tests.conformance.mutants.base import Steps, put, steps

PT = "https://github.com/pytorch/pytorch/issues/"
FA = "https://github.com/Dao-AILab/flash-attention/issues/"
OFF = Steps()

steps(
    "mask-inverted",
    "mask",
    "https://github.com/rasbt/LLMs-from-scratch/issues/1061",
    apply_mask=lambda c: OFF.apply_mask(
        put(c, mask=~c.mask if c.mask.dtype == torch.bool else c.mask)
    ),
)
steps(
    "mask-bool-added",
    "mask",
    "https://github.com/mlverse/torch/pull/1208",
    apply_mask=lambda c: put(c, scores=c.scores + c.mask),
)
steps(
    "mask-finite-fill",
    "mask",
    PT + "103749",
    apply_mask=lambda c: put(
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
        put(c, mask=c.mask[..., :1, :, :] if c.mask.dim() > 2 else c.mask)
    ),
)
steps(
    "mask-first-batch",
    "mask",
    "no report; common slip",
    apply_mask=lambda c: OFF.apply_mask(put(c, mask=c.mask[:1] if c.mask.dim() > 3 else c.mask)),
)
steps(
    "mask-float-as-bool",
    "mask",
    "no report; mask.bool() of an additive mask",
    apply_mask=lambda c: put(c, scores=c.scores.masked_fill(~c.mask.bool(), -torch.inf)),
)
steps(
    "mask-float-numbers-lost",
    "mask",
    "no report; only -inf of a float mask is read",
    apply_mask=lambda c: put(
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
    apply_mask=lambda c: put(
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
        put(
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
    apply_mask=lambda c: OFF.apply_mask(put(c, mask=_first_row_only(c))),
)
steps(
    "mask-multiplies-nan",
    "mask",
    PT + "101967",
    apply_mask=lambda c: put(
        c,
        scores=c.scores * c.mask + (1 - c.mask.to(c.scores.dtype)) * -1e5
        if c.mask.dtype == torch.bool
        else c.scores + c.mask,
    ),
)

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
        put(c, scores=c.scores.masked_fill(OFF.future(c), -torch.inf)) if c.causal else OFF.hide(c)
    ),
)


def _first_row_only(c: Any) -> Any:
    if c.mask.shape[-2] > 1 or c.L == 1:
        return c.mask
    shape = (*c.mask.shape[:-2], c.L, c.mask.shape[-1])
    free = torch.ones(shape, dtype=torch.bool) if c.mask.dtype == torch.bool else torch.zeros(shape)
    free = free.to(c.mask.dtype)
    free[..., :1, :] = c.mask
    return free
