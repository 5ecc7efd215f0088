"""Mistakes that only the gradients show."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.conformance.mutants.base import steps
from tests.conformance.mutants.tiled import BLOCK


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
