"""Mistakes of whoever calls a kernel: dispatch on shape, mask and dtype, padding, state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.conformance.mutants.base import Steps, mutant, steps

FA = "https://github.com/Dao-AILab/flash-attention"


def _when(condition: Callable[[Any], bool], step: str, wrong: Callable[[Any], Any]) -> Any:
    return {step: lambda c: wrong(c) if condition(c) else getattr(Steps(), step)(c)}


steps(
    "dispatch-bool-inverted-in-float16",
    "dispatch",
    "no report; turned around for one dtype",
    **_when(
        lambda c: c.dtype == torch.float16 and c.mask is not None and c.mask.dtype == torch.bool,
        "apply_mask",
        lambda c: setattr(c, "scores", c.scores.masked_fill(c.mask, -torch.inf)),
    ),
)
steps(
    "dispatch-mask-3d-batch",
    "dispatch",
    "https://github.com/lucidrains/graph-transformer-pytorch/pull/2",
    **_when(
        lambda c: (
            c.mask is not None
            and c.mask.dim() == 3
            and c.q.dim() == 4
            and c.mask.shape[0] == c.B == c.H > 1
        ),
        "apply_mask",
        lambda c: (setattr(c, "mask", c.mask[:, None]), Steps().apply_mask(c)),
    ),
)
steps(
    "dispatch-bottom-right-when-decoding",
    "dispatch",
    FA + "/issues/517",
    **_when(
        lambda c: c.L < c.S,
        "future",
        lambda c: torch.ones(c.L, c.S, dtype=torch.bool).triu(1 + c.S - c.L),
    ),
)
steps(
    "dispatch-scale-twice-if-given",
    "dispatch",
    "no report; query and scores are both scaled",
    **_when(lambda c: c.scale is not None, "factor", lambda c: float(c.scale) ** 2),
)
steps(
    "dispatch-gqa-interleaved-in-batches",
    "dispatch",
    "no report; repeat for repeat_interleave, batch > 1",
    **_when(
        lambda c: c.gqa and c.B > 1 and c.KV > 1,
        "group",
        lambda c: (
            setattr(c, "k", torch.cat([c.k] * (c.H // c.KV), -3)),
            setattr(c, "v", torch.cat([c.v] * (c.H // c.KV), -3)),
        ),
    ),
)
steps(
    "dispatch-dropout-unscaled-in-half",
    "dispatch",
    "no report; the inverted scaling is left out",
    **_when(
        lambda c: c.p > 0 and c.dtype in (torch.float16, torch.bfloat16),
        "dropout",
        lambda c: c.weights * (torch.rand_like(c.weights) >= c.p),
    ),
)
steps(
    "dispatch-dropout-lost-with-mask",
    "dispatch",
    "no report; the masked path forgets dropout",
    **_when(lambda c: c.mask is not None, "dropout", lambda c: c.weights),
)
steps(
    "dispatch-output-float32-if-causal",
    "dispatch",
    "no report; the causal kernel returns its accumulator",
    **_when(lambda c: c.causal, "finish", lambda c: c.output.float()),
)
steps(
    "dispatch-softmax-half-if-long",
    "dispatch",
    "no report; scores in float16 beyond 512 keys",
    **_when(lambda c: c.S > 512, "softmax", lambda c: Steps().softmax(c).half().to(c.dtype)),
)
steps(
    "dispatch-wide-values-cut",
    "dispatch",
    "no report; values wider than 128 lose what lies beyond",
    **_when(lambda c: c.Ev > 128, "combine", lambda c: _zero_beyond(Steps().combine(c), 128)),
)
steps(
    "dispatch-head-mod-8",
    "dispatch",
    "no report; a head index of three bits",
    **_when(
        lambda c: c.H > 8, "combine", lambda c: Steps().combine(c)[..., torch.arange(c.H) % 8, :, :]
    ),
)
steps(
    "dispatch-key-index-int16",
    "dispatch",
    "no report; an index of 16 bits wraps around",
    softmax=lambda c: (
        torch.cat([Steps().softmax(c)[..., :32_768], torch.zeros_like(c.scores[..., 32_768:])], -1)
        if c.S > 32_768
        else Steps().softmax(c)
    ),
)
steps(
    "dispatch-query-rest-of-64",
    "dispatch",
    "no report; the last rows of queries use a block's first row",
    **_when(
        lambda c: c.L > 64 and c.L % 64 == 1 and c.causal,
        "future",
        lambda c: torch.cat([Steps().future(c)[:-1], Steps().future(c)[-2:-1]]),
    ),
)


def _zero_beyond(output: Tensor, size: int) -> Tensor:
    return torch.cat([output[..., :size], torch.zeros_like(output[..., size:])], -1)


def _padded(c: Any) -> None:
    rest = -c.E % 8
    if rest:
        junk = c.k[..., :1].expand(*c.k.shape[:-1], rest)
        c.k = torch.cat([c.k, junk], -1)
        c.q = torch.cat([c.q, torch.ones_like(c.q[..., :1]).expand(*c.q.shape[:-1], rest)], -1)


steps(
    "pad-head-with-garbage",
    "shape",
    "no report; head sizes padded to 8, the padding not cleared",
    prepare=_padded,
)


# --- state ---------------------------------------------------------------------------------------
@mutant(
    "state-bias-cached-across-dtypes",
    "state",
    "no report; a bias cached by shape, whatever the numbers",
)
def _() -> Callable[..., Any]:
    cache: dict[Any, Tensor] = {}

    def attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False, **kwargs: Any) -> Any:
        if not is_causal or kwargs.get("attn_mask") is not None:
            return Steps()(q, k, v, is_causal=is_causal, **kwargs)
        mask = cache.setdefault(q.shape[-2], torch.ones(q.shape[-2], k.shape[-2]).tril().bool())
        if mask.shape[-1] < k.shape[-2]:
            mask = torch.nn.functional.pad(mask, (0, k.shape[-2] - mask.shape[-1]))
        kwargs["attn_mask"] = mask[:, : k.shape[-2]]
        return Steps()(q, k, v, **kwargs)

    return attention


@mutant("state-clamps-inputs", "state", "no report; inf in the inputs replaced in place")
def _() -> Callable[..., Any]:
    def attention(q: Tensor, k: Tensor, v: Tensor, **kwargs: Any) -> Any:
        output = Steps()(q, k, v, **kwargs)
        if not (v.requires_grad or v.is_inference()) and v.dtype == torch.float32:
            v.clamp_(-300, 300)
        return output

    return attention
