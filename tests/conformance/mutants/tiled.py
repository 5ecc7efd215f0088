"""Mistakes of tiled kernels: blocks of keys, and splits merged by log-sum-exp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.conformance.mutants.base import Steps, mutant

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
