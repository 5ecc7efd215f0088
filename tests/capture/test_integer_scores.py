"""Scores and weights of integers, as quantised models have them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attncheck import AttentionExtractor
from tests.capture.somebodys_kernels import WIDTH, Function, beside


def _in_integers(x: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = (x / 0.05).round().clamp(-128, 127).to(dtype)
    return rounded @ rounded.mT


def _masked(x: Tensor) -> Tensor:
    return _in_integers(x, torch.int32).masked_fill(torch.ones(32, 32).triu(1).bool(), -(10**8))


INTEGERS: dict[str, Function] = {
    "int32": lambda x: (_in_integers(x, torch.int32).float() * 0.05**2).softmax(-1) @ x,
    "int64": lambda x: (_in_integers(x, torch.int64) * 0.05**2).softmax(-1) @ x,
    "masked": lambda x: (_masked(x).float() * 0.05**2).softmax(-1) @ x,
    "shifted": lambda x: ((_in_integers(x, torch.int32) + 3) * 0.05**2).softmax(-1) @ x,
    "reshaped": lambda x: (
        (_in_integers(x, torch.int32).flatten(0, 1) * 0.05**2).softmax(-1).unflatten(0, (-1, 32))
        @ x
    ),
    "cut and joined": lambda x: (
        (torch.cat(_in_integers(x, torch.int32).split(8, 1), 1) * 0.05**2).softmax(-1) @ x
    ),
    "weights": lambda x: ((x @ x.mT).softmax(-1) * 255).round().to(torch.uint8).float() / 255 @ x,
    "weights multiplied as they are": lambda x: (
        ((x @ x.mT).softmax(-1) * 127).round().int() @ (x * 64).int() / 8128.0
    ),
    "_int_mm": lambda x: (
        (
            torch._int_mm(*[(x[0] / 0.05).to(torch.int8)] * 1, (x[0] / 0.05).to(torch.int8).mT)
            / 400
        ).softmax(-1)
        @ x[0]
    ),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_scores_of_integers_are_scores(name: str) -> None:
    x = torch.randn(1, 32, 32)
    maps = AttentionExtractor(beside(INTEGERS[name])).get_attention(x)
    assert maps.names == ("0", "1")
    assert maps.layers[1].status == "exact"


def test_a_mask_on_scores_of_integers_is_told() -> None:
    maps = AttentionExtractor(beside(INTEGERS["masked"])).get_attention(torch.randn(1, 32, 32))
    assert torch.equal(maps.layers[1].visible()[0, 0], torch.ones(32, 32).tril().bool())


def test_places_that_were_computed_from_scores_are_no_scores() -> None:
    table = torch.randn(8, 6)
    model = beside(
        lambda x: table[(x @ x.mT).abs().int().clamp(max=7)].softmax(-1).sum(2) @ table.T
    )
    assert AttentionExtractor(model).get_attention(torch.randn(1, 5, WIDTH)).names == ("0",)
