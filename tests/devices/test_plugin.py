"""Fixtures and options of the plugin in a nested pytest, on the device of the outer one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from attncheck.patterns import PATTERNS
from attncheck.regression.environment import device_key
from tests.pytest_plugin.conftest import INSTALLED, Run, _modules_stay, run

__all__ = ["_modules_stay", "run"]

QUICK = ("--benchmark-min-rounds=3", "--benchmark-max-time=0.01", "--benchmark-min-time=0.00001")

MAPS = """
    import pytest, torch
    from attncheck import AttentionExtractor
    from attncheck.models import load_tiny_model, repeated_tokens

    DTYPE = torch.{dtype}

    @pytest.fixture
    def maps(attention_extractor, attention_device):
        model = load_tiny_model().to(attention_device, DTYPE)
        with torch.no_grad():
            model.attention[1].query_key_value.weight[:32] *= {factor}
        return attention_extractor(model).get_attention(repeated_tokens(12).to(attention_device))

    def test_heads(maps, head_regression):
        head_regression.check(maps)
"""


@pytest.fixture
def plugin_args() -> list[str]:
    """As other tests load the plugin, but with pytest-benchmark where it is."""
    loaded = [] if INSTALLED else ["-p", "attncheck.pytest_plugin"]
    return [*loaded, "-p", "no:cacheprovider"]


@pytest.fixture
def option(attention_device: torch.device) -> str:
    return f"--attncheck-device={attention_device.type}"


def test_fixtures_make_what_they_make_on_the_device(run: Run, option: str) -> None:
    result = run(
        """
        import torch
        from hypothesis import given, settings, strategies as st
        from attncheck import assert_row_stochastic, identify_attention_pattern

        def test_label(attention_pattern, attention_device):
            assert attention_pattern.weights.device.type == attention_device.type
            assert attention_pattern.create(12).device.type == attention_device.type
            label = identify_attention_pattern(
                attention_pattern.weights,
                tokens=attention_pattern.tokens,
                causal=attention_pattern.causal,
            )
            assert label == attention_pattern.name

        @settings(max_examples=5, deadline=None, database=None)
        @given(n=st.integers(1, 20))
        def test_any_length(synthetic_attention, attention_device, n):
            weights = synthetic_attention(n, "uniform")
            assert weights.device.type == attention_device.type
            assert_row_stochastic(weights)
        """,
        option,
    )
    result.assert_outcomes(passed=len(PATTERNS) + 1)


def test_artifacts_and_report_of_a_failure(
    run: Run, option: str, pytester: pytest.Pytester
) -> None:
    result = run(
        """
        import torch, attncheck

        def test_it(synthetic_attention):
            weights = synthetic_attention(16, "local", heads=3, batch=1).bfloat16()
            attncheck.assert_causal(weights)

        def test_extractor(attention_extractor, attention_device):
            layer = torch.nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
            layer = layer.to(attention_device).eval()
            maps = attention_extractor(layer).get_attention(
                torch.ones(1, 5, 8, device=attention_device)
            )
            attncheck.assert_row_stochastic(maps)
        """,
        option,
        "--attncheck-artifacts=out",
        "--attncheck-report=heads.html",
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["E       attncheck.CheckFailure: not causal: *"])
    names = {path.name.partition(".")[2] for path in (pytester.path / "out").rglob("*.*")}
    assert {"png", "npz", "json"} <= names
    assert "test_extractor" in (pytester.path / "heads.html").read_text(encoding="utf-8")


def test_regression_on_the_device(run: Run, option: str, pytester: pytest.Pytester) -> None:
    same = MAPS.format(dtype="float32", factor=1)
    run(same, option, "--attncheck-update").assert_outcomes(passed=1)
    run(same, option).assert_outcomes(passed=1)
    held = (pytester.path / "__heads__/test_it/test_heads.json").read_text(encoding="utf-8")
    run(same).assert_outcomes(passed=1)  # on the CPU
    run(MAPS.format(dtype="bfloat16", factor=1), option).assert_outcomes(passed=1)
    result = run(MAPS.format(dtype="float32", factor=0), option)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E       attncheck.CheckFailure: 2 of 4 heads changed: L1H*"])
    assert device_key(torch.device(option.partition("=")[2])) in held


def test_a_variant_for_the_device(run: Run, option: str, pytester: pytest.Pytester) -> None:
    """A change accepted here stands beside the baseline that was recorded elsewhere."""
    run(MAPS.format(dtype="float32", factor=1), "--attncheck-update").assert_outcomes(passed=1)
    changed = MAPS.format(dtype="bfloat16", factor=0)
    run(changed, option).assert_outcomes(failed=1)
    run(changed, option, "--attncheck-update=all").assert_outcomes(passed=1)
    run(changed, option).assert_outcomes(passed=1)
    run(MAPS.format(dtype="float32", factor=1)).assert_outcomes(passed=1)
    assert len(list((pytester.path / "__heads__/test_it").glob("test_heads*.json"))) == 2


def test_profiles_of_all_tests(run: Run, option: str, pytester: pytest.Pytester) -> None:
    result = run(
        """
        import pytest
        from attncheck import profile_model
        from attncheck.models import load_tiny_model, repeated_tokens

        @pytest.mark.parametrize("period", [6, 12])
        def test_heads(attention_profiles, attention_device, period):
            model = load_tiny_model().to(attention_device)
            ids = repeated_tokens(period).to(attention_device)
            attention_profiles.add(profile_model(model, ids), "tiny")
        """,
        option,
        "--attncheck-profiles=heads",
    )
    result.assert_outcomes(passed=2)
    assert (pytester.path / "heads/tiny.json").exists()


def test_benchmark(run: Run, option: str, pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_benchmark")
    result = run(
        """
        import torch, torch.nn.functional as F

        def test_it(attention_benchmark, attention_device):
            x = torch.ones(1, 2, 256, 32, device=attention_device)
            out = attention_benchmark(
                F.scaled_dot_product_attention, x, x, x,
                tokens=256, bytes_moved=4 * x.nbytes, flops=4 * 2 * 256 * 256 * 32,
            )
            assert out.device.type == attention_device.type

        def test_no_tensor(attention_benchmark):
            assert attention_benchmark(lambda: 3) == 3
        """,
        option,
        *QUICK,
        "--benchmark-json=out.json",
    )
    result.assert_outcomes(passed=2)
    held = json.loads(Path(pytester.path, "out.json").read_text(encoding="utf-8"))
    info = held["benchmarks"][0]["extra_info"]
    kind = option.partition("=")[2]
    assert [entry["extra_info"]["device"].split(":")[0] for entry in held["benchmarks"]] == [
        kind
    ] * 2
    assert info["bandwidth_share"] > 0
    assert 0 < info["flop_share"] < 20  # times of a machine that does much beside; no wrong unit
    assert info["peak_bytes"] >= 2 * 256 * 32 * 4
    if kind == "cuda":
        assert held["machine_info"]["attncheck"]["gpu"] == torch.cuda.get_device_name()
