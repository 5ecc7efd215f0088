"""Attention of one head: no other axis is taken for one of heads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.capture.handwritten import Written, fused, merged, require, weights_of

PROJECTION = torch.nn.Linear(16, 16)
ONE_HEAD: dict[str, Callable[[Tensor], Tensor]] = {
    "returned": lambda out: out,
    "flattened": lambda out: (out + PROJECTION(out)).flatten(1),
    "summed": lambda out: PROJECTION(out).sum(1),
    "frames": lambda out: out.transpose(1, 2).flatten(2),
}


@pytest.mark.parametrize("end", ONE_HEAD)
def test_where_one_head_is_declared_all_else_is_batch(end: str) -> None:
    model = Written(lambda x: ONE_HEAD[end](fused(x, x, x)), declares=1)
    x = torch.randn(2, 4, 6, 16)
    require(model, (x,), weights_of(x, x).flatten(0, 1)[:, None])


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("end", ["returned", "flattened", "summed"])
def test_features_that_are_projected_first_are_of_one_head(end: str, batch: int) -> None:
    """Undeclared: whoever has several heads merges them before a layer."""

    def rows(x: Tensor) -> Tensor:
        return ONE_HEAD[end](PROJECTION(fused(x, x, x)))

    x = torch.randn(batch, 4, 6, 16)
    require(Written(rows), (x,), weights_of(x, x).flatten(0, 1)[:, None])


def test_windows_of_one_head_are_no_heads() -> None:
    shown = (torch.rand(3, 4, 4) > 0.4) | torch.eye(4).bool()

    def windows(x: Tensor) -> Tensor:
        scores = (x @ x.mT / 4).view(-1, 3, 1, 4, 4).masked_fill(~shown[:, None], -torch.inf)
        return merged(scores.view(-1, 1, 4, 4).softmax(-1) @ x[:, None])

    x = torch.randn(6, 4, 16)
    scores = (x @ x.mT / 4).masked_fill(~shown.repeat(2, 1, 1), -torch.inf)
    require(Written(windows, declares=1), (x,), scores.softmax(-1)[:, None])
