"""Mistakes of tiled kernels and of their callers: blocks, merges, dispatch on shape and dtype."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.conformance.mutants.base import Steps, mutant, steps

FA = "https://github.com/Dao-AILab/flash-attention"
PT = "https://github.com/pytorch/pytorch/issues/"
BLOCK = 32


class Tiled(Steps):
    """Online softmax over blocks of keys; ``c.peak``, ``c.total`` and ``c.sum`` run along."""

    def prepare(self, c: Any) -> None:
        if c.dtype != torch.float64:
            c.q, c.k, c.v = c.q.float(), c.k.float(), c.v.float()
            floating = c.mask is not None and c.mask.dtype != torch.bool
            c.mask = c.mask.float() if floating else c.mask

    def finish(self, c: Any) -> Any:
        return c.output.to(c.dtype)

    def softmax(self, c: Any) -> Tensor:
        return c.scores  # type: ignore[no-any-return]

    def combine(self, c: Any) -> Tensor:
        if c.p:
            c.dropped = self.dropout(c)
        c.peak = c.scores.new_full((*c.scores.shape[:-1], 1), -torch.inf)
        c.total = torch.zeros_like(c.peak)
        c.sum = c.peak.new_zeros((*c.scores.shape[:-1], c.Ev))
        for start in range(0, c.S, BLOCK):
            self.block(c, start, min(start + BLOCK, c.S))
        found: Tensor = c.sum / c.total.masked_fill(c.total == 0, 1)
        return found

    def dropout(self, c: Any) -> Tensor:
        if c.p:
            raise NotImplementedError("no dropout")
        return c.scores  # type: ignore[no-any-return]

    def block(self, c: Any, start: int, end: int) -> None:
        scores = c.scores[..., start:end]
        peak = torch.maximum(c.peak, scores.amax(-1, keepdim=True))
        self.add(c, scores, c.v[..., start:end, :], peak)

    def add(self, c: Any, scores: Tensor, value: Tensor, peak: Tensor) -> None:
        safe = peak.masked_fill(peak == -torch.inf, 0)
        powers = torch.exp(scores - safe)
        old = torch.exp(c.peak - safe)
        c.total = c.total * old + powers.sum(-1, keepdim=True)
        c.sum = c.sum * old + powers @ value
        c.peak = peak


def tiled(id: str, family: str, source: str, **changes: Callable[..., Any]) -> None:
    """Enter a mutant of `Tiled`."""
    methods = {name: _method(change) for name, change in changes.items()}
    mutant(id, family, source)(lambda: type(id, (Tiled,), methods)())


def _method(change: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *args: change(*args)


RIGHT = Tiled()


# --- blocks of keys ------------------------------------------------------------------------------
def _short_last(c: Any, start: int, end: int) -> None:
    RIGHT.block(c, start, end - (end - start < BLOCK and start > 0 and end - start > 1))


tiled(
    "tile-last-key",
    "tile",
    "no report; the last, partly filled block stops one key early",
    block=_short_last,
)


def _skip_masked(c: Any, start: int, end: int) -> None:
    if not bool((c.scores[..., start:end] == -torch.inf).all(-1).any()):
        RIGHT.block(c, start, end)


tiled(
    "tile-skip-if-any-row-masked",
    "tile",
    "no report; a block skipped when one row of it is masked",
    block=_skip_masked,
)


def _first_peak(c: Any, start: int, end: int) -> None:
    peak = c.scores[..., :BLOCK].amax(-1, keepdim=True)
    RIGHT.add(c, c.scores[..., start:end], c.v[..., start:end, :], peak)


tiled(
    "tile-peak-of-first-block",
    "tile",
    "no report; Milakov, Gimelshein 2018: the maximum must run",
    block=_first_peak,
)


def _old_sum(c: Any, start: int, end: int) -> None:
    RIGHT.block(c, start, end)
    if start >= 2 * BLOCK:
        c.sum = c.sum * (1 + 1e-3)


tiled(
    "tile-third-block-on",
    "tile",
    "no report; an accumulator rescaled once more from the third block on",
    block=_old_sum,
)


def _nan_row(c: Any, start: int, end: int) -> None:
    scores = c.scores[..., start:end]
    peak = torch.maximum(c.peak, scores.amax(-1, keepdim=True))
    powers, old = torch.exp(scores - peak), torch.exp(c.peak - peak)
    c.total = c.total * old + powers.sum(-1, keepdim=True)
    c.sum, c.peak = c.sum * old + powers @ c.v[..., start:end, :], peak


tiled("tile-inf-minus-inf", "tile", "no report; left padding masks whole blocks", block=_nan_row)


def _finite_start(c: Any) -> Tensor:
    c.scores = c.scores.clamp_min(-1e4)
    return Tiled.combine(RIGHT, c)


tiled(
    "tile-finite-minus-infinity",
    "tile",
    "no report; -1e4 for -inf: a row of masked keys is a mean",
    combine=_finite_start,
)


# --- splits merged by log-sum-exp ----------------------------------------------------------------
def _merge(weigh: Callable[[Tensor], Tensor]) -> Callable[[Any], Tensor]:
    def combine(c: Any) -> Tensor:
        if c.p:
            raise NotImplementedError("no dropout")
        if c.S < 64:
            return Tiled.combine(RIGHT, c)
        half = c.S // 2
        outputs, sums = [], []
        for part in (slice(0, half), slice(half, None)):
            scores = c.scores[..., part]
            empty = (scores == -torch.inf).all(-1, keepdim=True)
            safe = scores.masked_fill(empty, 0)
            outputs.append(torch.softmax(safe, -1).masked_fill(empty, 0) @ c.v[..., part, :])
            sums.append(torch.logsumexp(safe, -1, keepdim=True).masked_fill(empty, -torch.inf))
        shares = weigh(torch.stack(sums))
        found: Tensor = (shares * torch.stack(outputs)).sum(0)
        return found

    return combine


def _softmax_of_sums(sums: Tensor) -> Tensor:
    empty = (sums == -torch.inf).all(0, keepdim=True)
    return torch.softmax(sums.masked_fill(empty, 0), 0)


tiled(
    "merge-unweighted",
    "merge",
    "no report; split keys merged as a plain mean",
    combine=_merge(lambda sums: torch.full_like(sums, 0.5)),
)
tiled(
    "merge-all-masked-split",
    "merge",
    "no report; exp(-inf + inf) of an empty split",
    combine=_merge(lambda sums: (sums - sums.amin(0)).exp() / (sums - sums.amin(0)).exp().sum(0)),
)
tiled(
    "merge-sums-in-half",
    "merge",
    "no report; the log-sum-exp stored in bfloat16",
    combine=_merge(lambda sums: _softmax_of_sums(sums.bfloat16().to(sums.dtype))),
)


# --- base 2 --------------------------------------------------------------------------------------
def _base_two(c: Any) -> Tensor:
    scores = c.scores * math.log2(math.e)
    empty = (scores == -torch.inf).all(-1, keepdim=True)
    safe = scores.masked_fill(empty, 0)
    powers = torch.exp2(safe - safe.amax(-1, keepdim=True)).masked_fill(empty, 0)
    found: Tensor = powers / powers.sum(-1, keepdim=True).masked_fill(empty, 1)
    return found


steps(
    "base-two-overflow",
    "softmax",
    "https://github.com/pytorch/pytorch/issues/110213",
    softmax=_base_two,
)


# --- dispatch ------------------------------------------------------------------------------------
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


# --- gradients -----------------------------------------------------------------------------------
def _detached_mask(c: Any) -> None:
    if c.mask is not None and c.mask.dtype != torch.bool:
        c.mask = c.mask.detach()


steps(
    "gradient-of-mask-missing",
    "gradient",
    "no report; a bias read as a constant",
    prepare=_detached_mask,
)


class _MeanOverGroup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: int) -> Tensor:
        ctx.group = group
        return x.repeat_interleave(group, -3)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad.unflatten(-3, (-1, ctx.group)).mean(-3), None


def _mean_over_group(c: Any) -> None:
    if c.gqa:
        group = c.H // max(c.KV, 1)
        c.k, c.v = _MeanOverGroup.apply(c.k, group), _MeanOverGroup.apply(c.v, group)


steps(
    "gradient-mean-over-group",
    "gradient",
    "https://github.com/marin-community/levanter/pull/449",
    group=_mean_over_group,
)


class _NoLastRow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        kept = grad.clone()
        if kept.shape[-2] > BLOCK and kept.shape[-2] % BLOCK:
            kept[..., -1, :] = 0
        return kept


def _lost_row(c: Any) -> None:
    c.v = _NoLastRow.apply(c.v)


steps(
    "gradient-last-partial-row",
    "gradient",
    "no report; dv of the last row of a partly filled block",
    prepare=_lost_row,
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
