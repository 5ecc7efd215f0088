"""Promises of a whole model that lives on the device."""

from __future__ import annotations

import pytest
import torch

from attncheck import CheckFailure, assert_no_future_leakage, check_model
from attncheck.models import TinyTransformer, load_tiny_model, repeated_tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_sound_model_passes(dtype: torch.dtype, attention_device: torch.device) -> None:
    model = load_tiny_model().to(attention_device, dtype)
    report = check_model(model, repeated_tokens(12).to(attention_device), raises=False)
    assert report.passed, str(report)


class Peeks(TinyTransformer):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        ahead = input_ids.roll(-1, -1)
        return super().forward(input_ids) + 0.01 * super().forward(ahead)


def test_a_leak_is_found(attention_device: torch.device) -> None:
    torch.manual_seed(0)
    model = Peeks().eval().to(attention_device)
    with pytest.raises(CheckFailure, match="future"):
        assert_no_future_leakage(model, repeated_tokens(12).to(attention_device))
