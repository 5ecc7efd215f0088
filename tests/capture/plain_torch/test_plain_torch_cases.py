"""Every way to spell attention in plain torch: captured exactly, refused loudly, or left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attncheck import AttentionExtractor, CaptureError
from tests.capture.plain_torch.axis_cases import AXES
from tests.capture.plain_torch.case import Case, inputs
from tests.capture.plain_torch.computed_weight_cases import COMPUTED_WEIGHTS
from tests.capture.plain_torch.more_negative_cases import MORE_NEGATIVE
from tests.capture.plain_torch.multihead_cases import MULTIHEAD, STACKS
from tests.capture.plain_torch.negative_cases import NEGATIVE as FIRST_NEGATIVE
from tests.capture.plain_torch.negative_cases import WIDTH
from tests.capture.plain_torch.odd_cases import ODD
from tests.capture.plain_torch.pair_cases import PAIRS
from tests.capture.plain_torch.score_cases import SCORES
from tests.capture.plain_torch.sdpa_cases import FLEX, SDPA
from tests.capture.plain_torch.written_cases import WRITTEN

NEGATIVE = {**FIRST_NEGATIVE, **MORE_NEGATIVE, **COMPUTED_WEIGHTS}
GROUPS = {
    "sdpa": SDPA,
    "flex": FLEX,
    "written": WRITTEN,
    "odd": ODD,
    "scores": SCORES,
    "axes": AXES,
    "pairs": PAIRS,
    "multihead": MULTIHEAD,
    "stack": STACKS,
}
CASES = {f"{group}: {name}": case for group, held in GROUPS.items() for name, case in held.items()}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_weights_are_exactly_those_of_the_layer(name: str) -> None:
    case: Case = CASES[name]
    model, args = case.make()
    torch.manual_seed(2)
    gradients = not name.startswith("flex")  # which has no backward on a CPU
    with torch.set_grad_enabled(gradients), AttentionExtractor(model) as extractor:
        model(*args, **case.options)
    found = [layer.weights.double().numpy() for layer in extractor.maps.layers]
    assert all(layer.status == "exact" for layer in extractor.maps.layers)
    expected = case.expected(model, args)
    assert [w.shape for w in found] == [w.shape for w in expected]
    assert max(np.abs(a - b).max() for a, b in zip(found, expected, strict=True)) < case.atol


@pytest.mark.parametrize("name", NEGATIVE)
def test_what_is_no_attention_is_not_captured(name: str) -> None:
    model, args = NEGATIVE[name]()
    with pytest.raises(CaptureError, match="captured no attention"):
        AttentionExtractor(model).get_attention(*args)


@pytest.mark.parametrize("name", NEGATIVE)
def test_what_is_no_attention_stays_out_beside_attention(name: str) -> None:
    """A layer of real attention before it must be all that is captured, with nothing to warn of."""
    other, _ = NEGATIVE[name]()
    layer = torch.nn.TransformerEncoderLayer(WIDTH, 4, 32, batch_first=True)
    model = torch.nn.Sequential(layer, other)
    maps = AttentionExtractor(model).get_attention(*inputs())
    assert tuple(maps.names) == ("0.self_attn",)


def test_there_are_more_than_sixty_cases() -> None:
    assert len(CASES) > 150
    assert len(NEGATIVE) >= 44
