"""Timing, memory and ceilings: what they count, never how fast this machine is."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from attncheck.benchmark import (
    count_flops,
    interleave,
    machine,
    measure_ceilings,
    median_ratio,
    peak_memory,
)


def test_rounds_are_interleaved_and_warmed_up() -> None:
    calls: list[str] = []
    before: list[str] = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = interleave(functions, 4, before=before.append)  # type: ignore[arg-type]
    assert calls == before
    assert calls[:3] == ["a", "b", "c"]
    rounds = [calls[at : at + 3] for at in range(3, 15, 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len({tuple(each) for each in rounds}) > 1
    assert {name: len(each) for name, each in times.items()} == {"a": 4, "b": 4, "c": 4}


def test_the_ratio_is_taken_within_a_round() -> None:
    times = {"a": [1.0, 20.0, 3.0], "b": [1.0, 10.0, 1.0]}
    assert median_ratio(times, "a", "b") == 2.0
    with pytest.raises(ValueError, match="zip"):
        median_ratio({"a": [1.0], "b": [1.0, 2.0]}, "a", "b")


def test_peak_memory_is_the_most_held_at_once() -> None:
    size = 1 << 20

    def held_together() -> list[torch.Tensor]:
        return [torch.zeros(size) for _ in range(3)]

    def one_by_one() -> None:
        for _ in range(3):
            torch.zeros(size)

    for function, count in ((held_together, 3), (one_by_one, 1)):
        peak = peak_memory(function)
        assert peak is not None
        assert count * 4 * size <= peak < count * 4 * size + 4096


def test_what_was_held_before_is_not_counted() -> None:
    kept = [torch.zeros(1 << 20)]
    assert peak_memory(kept.clear) == 0


def test_peak_memory_passes_errors_on_and_writes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        peak_memory(fails)
    peak_memory(lambda: None)
    assert capfd.readouterr().err == ""


def test_peak_memory_warns_of_no_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `torch.profiler.profile` does in torch 2.10 and 2.11, where there is one."""

    def prepare_trace(self: torch.profiler.profile) -> None:
        warnings.warn("Profiler clears events at the end of each cycle", stacklevel=2)

    monkeypatch.setattr(torch.profiler.profile, "prepare_trace", prepare_trace)
    assert peak_memory(lambda: torch.zeros(1 << 10)) == 4 << 10


def test_ceilings_are_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"read": [0.5] * 5, "copy": [0.25] * 5, "product": [2.0] * 5}
    monkeypatch.setattr("attncheck.benchmark.ceilings.interleave", lambda *_: seconds)
    found = measure_ceilings(size=4096, width=10)
    assert (found.read, found.copy, found.flops) == (8192.0, 32768.0, 1000.0)
    assert found.bandwidth == 32768.0


def test_the_machine_is_data() -> None:
    held = json.loads(json.dumps(machine()))
    assert held["versions"]["torch"] == torch.__version__
    assert held["torch_threads"] == torch.get_num_threads()


def test_operations_are_counted_in_products_and_in_attention() -> None:
    x = torch.randn(2, 3, 16, 8)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert count_flops(lambda: attend(x, x, x, is_causal=True)) == 4 * 2 * 3 * 16 * 16 * 8
    assert count_flops(lambda: torch.nn.Linear(8, 4)(x)) == 2 * x.numel() * 4
    assert count_flops(lambda: x + x) is None
    assert count_flops(lambda: 1 / 0) is None
