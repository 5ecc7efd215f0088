"""Row measures by the kernel against those block by block."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attncheck.attention import LayerAttention
from attncheck.metrics import METRICS, rapid
from attncheck.metrics.metric import measure_in_blocks
from tests.kernels.interpreted import DEVICE

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")  # of its interpreter
UNSORTED = [metric for metric in METRICS.values() if not metric.sorts]


@pytest.fixture(autouse=True)
def small_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rapid, "_worth_kernel", lambda _: True)


def _layer(n_query: int, n_key: int, causal: bool, **options: Any) -> LayerAttention:
    generator = torch.Generator().manual_seed(n_query)
    scores = 3 * torch.randn(2, 3, n_query, n_key, generator=generator)
    if causal:
        scores = scores.masked_fill(scores.new_ones(n_query, n_key).triu(1).bool(), -torch.inf)
    dtype = options.pop("dtype", torch.float32)
    weights = torch.softmax(scores, -1).to(dtype).to(DEVICE)
    return LayerAttention(weights, causal=causal, **options)


@pytest.mark.parametrize(
    "layer",
    [
        _layer(40, 40, True),
        _layer(33, 70, False),
        _layer(9, 1100, False),
        _layer(20, 30, False, kind="cross"),
        _layer(40, 40, True, dtype=torch.float16),
    ],
    ids=["causal", "both directions", "several tiles", "cross", "half precision"],
)
def test_measures_are_those_found_block_by_block(layer: LayerAttention) -> None:
    found = rapid.measure_rapidly(layer, [metric.name for metric in UNSORTED])
    assert found is not None
    for name, (values, valid) in measure_in_blocks(layer, UNSORTED).items():
        mine, counted = found[name]
        assert torch.equal(counted.expand(valid.shape), valid), name
        bound = 1e-6 * layer.n_key
        torch.testing.assert_close(mine[valid], values[valid], rtol=0, atol=bound, msg=name)


def test_rows_of_zeros_do_not_count() -> None:
    layer = _layer(20, 20, True)
    layer.weights[1, 2, 3] = 0
    found = rapid.measure_rapidly(layer, ["entropy"])
    assert found is not None
    assert (~found["entropy"][1]).nonzero().tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -0.1, 0.5])
def test_what_is_no_attention_is_left_to_others(wrong: float) -> None:
    layer = _layer(20, 20, True)
    layer.weights[1, 2, 3, -1] = wrong
    assert rapid.measure_rapidly(layer, ["entropy"]) is None
