"""`attention_benchmark` in a nested pytest: its numbers, its files, and wrong uses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.pytest_plugin.conftest import INSTALLED, Run

QUICK = ("--benchmark-min-rounds=3", "--benchmark-max-time=0.01", "--benchmark-min-time=0.00001")


@pytest.fixture
def plugin_args() -> list[str]:
    """As the other tests load the plugin, but with pytest-benchmark."""
    pytest.importorskip("pytest_benchmark")
    loaded = [] if INSTALLED else ["-p", "attncheck.pytest_plugin"]
    return [*loaded, "-p", "no:cacheprovider"]


def measured(run: Run, pytester: pytest.Pytester, source: str) -> dict[str, Any]:
    result = run(source, *QUICK, "--benchmark-json=out.json")
    result.assert_outcomes(passed=1)
    held: dict[str, Any] = json.loads((pytester.path / "out.json").read_text())
    return held


def test_rates_shares_memory_and_machine_are_stored(run: Run, pytester: pytest.Pytester) -> None:
    held = measured(
        run,
        pytester,
        """
        import torch
        from attncheck.benchmark import Ceilings
        import attncheck.benchmark

        def test_it(attention_benchmark, monkeypatch):
            found = Ceilings(read=1e9, copy=2e9, flops=4e12)
            monkeypatch.setattr(attncheck.benchmark, "measure_ceilings", lambda *_: found)
            x = torch.zeros(1 << 20)
            out = attention_benchmark(
                torch.add, x, 1, tokens=512, bytes_moved=8 << 20, flops=1 << 20, alpha=2
            )
            assert torch.equal(out, x + 2)
        """,
    )
    (entry,) = held["benchmarks"]
    info, median = entry["extra_info"], entry["stats"]["median"]
    assert info["device"] == "cpu"
    assert info["tokens_per_second"] == pytest.approx(512 / median)
    assert info["bytes_per_second"] == pytest.approx((8 << 20) / median)
    assert info["bandwidth_share"] == pytest.approx(info["bytes_per_second"] / 2e9)
    assert info["flop_share"] == pytest.approx(info["flops_per_second"] / 4e12)
    assert 4 << 20 <= info["peak_bytes"] < (4 << 20) + 4096
    assert held["machine_info"]["attncheck"]["versions"]["torch"]


def test_amounts_are_optional_and_memory_too(run: Run, pytester: pytest.Pytester) -> None:
    held = measured(
        run,
        pytester,
        """
        def test_it(attention_benchmark):
            assert attention_benchmark(lambda a, b: a + b, 1, b=2, memory=False) == 3
        """,
    )
    assert held["benchmarks"][0]["extra_info"] == {"device": "cpu"}


def test_one_call_warms_up_and_each_call_is_waited_for(run: Run) -> None:
    result = run(
        """
        import attncheck.benchmark

        def test_it(attention_benchmark, benchmark, monkeypatch):
            log = []
            monkeypatch.setattr(
                attncheck.benchmark, "synchroniser", lambda device: lambda: log.append("wait")
            )
            seen = []
            monkeypatch.setattr(
                type(benchmark),
                "_calibrate_timer",
                lambda self, runner: (seen.extend(log), (1.0, 1, range(1)))[1],
            )
            attention_benchmark(lambda: log.append("call"), memory=False)
            assert seen == ["call", "wait"]
            assert log == ["call", "wait"] * (len(log) // 2) and len(log) > 4
        """,
        *QUICK,
    )
    result.assert_outcomes(passed=1)


def test_disabled_runs_once_and_measures_nothing(run: Run) -> None:
    result = run(
        """
        def test_it(attention_benchmark, benchmark):
            calls = []
            attention_benchmark(lambda: calls.append(1), tokens=4)
            assert calls == [1] and benchmark.extra_info == {}
        """,
        "--benchmark-disable",
    )
    result.assert_outcomes(passed=1)


def test_benchmark_only_and_skip_know_it(run: Run) -> None:
    source = "def test_it(attention_benchmark):\n    attention_benchmark(int, memory=False)\n"
    run(source, "--benchmark-only", *QUICK).assert_outcomes(passed=1)
    run(source, "--benchmark-skip").assert_outcomes(skipped=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("attention_benchmark(3)", "function: got int; expected what can be called"),
        ("attention_benchmark(int, tokens=0)", "tokens: got 0; expected a positive number"),
        ("attention_benchmark(int, bytes_moved='8')", "bytes_moved: got str; expected how many"),
        ("attention_benchmark(lambda: 1 / 0)", "ZeroDivisionError"),
        ("attention_benchmark(int, flops=float('nan'))", "flops: got nan; expected a positive"),
    ],
)
def test_wrong_use_is_told(run: Run, call: str, message: str) -> None:
    result = run(f"def test_it(attention_benchmark):\n    {call}\n", *QUICK)
    result.assert_outcomes(failed=1)
    assert message in result.stdout.str()


def test_without_pytest_benchmark_it_says_what_to_do(run: Run) -> None:
    result = run(
        "def test_it(attention_benchmark):\n    attention_benchmark(int)\n", "-p", "no:benchmark"
    )
    result.assert_outcomes(errors=1)
    shown = result.stdout.str()
    assert "pip install 'attncheck[bench]'" in shown
    assert "no:benchmark" in shown
