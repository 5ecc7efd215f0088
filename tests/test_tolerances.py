"""The tolerance table: torch's numbers, loosest of the inputs, wide enough for real rounding."""

from __future__ import annotations

import pytest
import torch

from attncheck.tolerances import TOLERANCES, tolerance_for


@pytest.mark.parametrize("name", TOLERANCES)
def test_is_torchs_table(name: str) -> None:
    dtype = getattr(torch, name)
    one = torch.ones((), dtype=torch.float64)
    allowed = TOLERANCES[name]
    torch.testing.assert_close(
        one + 0.99 * allowed.row_sum, one, rtol=allowed.rtol, atol=allowed.atol
    )
    rtol, atol = torch.testing._comparison.default_tolerances(dtype)
    assert (allowed.rtol, allowed.atol) == (rtol, atol)


@pytest.mark.parametrize("name", TOLERANCES)
@pytest.mark.parametrize("n_key", [16, 512, 4096])
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 8.0])
def test_covers_what_rounding_does_to_rows(name: str, n_key: int, sharpness: float) -> None:
    torch.manual_seed(n_key)
    exact = (torch.randn(64, n_key, dtype=torch.float64) * sharpness).softmax(-1)
    rounded = exact.to(getattr(torch, name)).double()
    assert (rounded.sum(-1) - 1).abs().max() < TOLERANCES[name].row_sum
    assert 0.5 * (rounded - exact).abs().sum(-1).mean() < TOLERANCES[name].total_variation


def test_the_loosest_wins_and_strangers_are_named() -> None:
    assert tolerance_for(torch.float32, torch.bfloat16) is TOLERANCES["bfloat16"]
    assert tolerance_for("float64") is TOLERANCES["float64"]
    with pytest.raises(ValueError, match="no tolerance for 'int64'; known are float64"):
        tolerance_for(torch.int64)
