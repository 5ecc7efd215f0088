"""The ways of summing columns agree; the way of a GPU is played on the CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import _measure, column_sums


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    query, key = 2 * torch.randn(2, 1, column_sums.HEADS, 130, column_sums.SIZE)
    return query, key


def test_the_transposed_flash_kernel_sums_columns(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    found = column_sums.stock_on_cpu(*pair)
    torch.testing.assert_close(found, column_sums.dense(*pair), rtol=1e-4, atol=1e-4)
    assert found.sum(-1) == pytest.approx(torch.full((1, column_sums.HEADS), 130.0), rel=1e-4)


@pytest.mark.filterwarnings("ignore:.*flex_attention:UserWarning")
@pytest.mark.filterwarnings("ignore:.*return_lse:FutureWarning")
def test_transposed_flex_attention_sums_columns(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    query, key = pair
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    lse = kernel(query, key, key, is_causal=True, scale=column_sums.SCALE)[1]
    found = column_sums.by_flex(flex_attention, query, key, lse)
    torch.testing.assert_close(found, column_sums.dense(query, key), rtol=1e-4, atol=1e-4)


def test_what_fails_or_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(query: object, key: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(column_sums, "stock_on_cpu", fails)
    monkeypatch.setattr(column_sums, "free_memory", lambda device: 1 << 20)
    found = column_sums.measure(128, 1, "cpu", torch.float32)
    assert found["left out"] == {
        "dense": "its matrix does not fit",
        "stock kernels": "RuntimeError: no such kernel",
    }
    assert set(found["ways"]) == {"attention", "attncheck column sums", "attncheck profile"}


def test_each_length_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[list[str]] = []

    def write(name: str, data: dict) -> Path:
        assert name == "column_sums"
        written.append(list(json.loads(json.dumps(data))["lengths"]))
        return tmp_path

    monkeypatch.setattr(column_sums, "write_results", write)
    monkeypatch.setattr(sys, "argv", ["it", "--device", "cpu", "--lengths", "16", "32"])
    column_sums.main()
    assert written == [["16"], ["16", "32"]]
    assert _measure.result_name("column_sums", "cuda:1") == "column_sums_cuda"
