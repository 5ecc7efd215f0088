"""`head_regression` where one test checks several times, by names, in runs, or anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pytest_plugin.baselines import files_below
from tests.pytest_plugin.conftest import Run


def test_names_repeats_and_runs(run: Run, pytester: pytest.Pytester) -> None:
    source = """
    import torch
    def weights(seed, shape=(1, 2, 12, 12)):
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    def test_names(head_regression):
        head_regression.check(torch.eye(12), "early")
        head_regression.check(weights(1), "late")
    def test_repeats(head_regression):
        for _ in range(3):
            head_regression.check(weights(1))
    def test_runs(head_regression):
        head_regression.check(weights(0), runs=[weights(seed) for seed in range(1, 5)])
    class TestA:
        def test_names(self, head_regression):
            head_regression.check(torch.eye(9))
    """
    run(source, "--attncheck-update").assert_outcomes(passed=4)
    assert [Path(file).name for file in files_below(pytester.path)] == [
        "TestA.test_names.json",
        "test_names.early.json",
        "test_names.late.json",
        "test_repeats.json",
        "test_runs.json",
    ]
    held = json.loads((pytester.path / "__heads__/test_it/test_runs.json").read_text())
    assert held["runs"] == 5
    assert held["heads"]["L0H0"]["spread"]["entropy"] > 0
    run(source).assert_outcomes(passed=4)
    other = source.replace("range(1, 5)", "range(11, 15)").replace("weights(0)", "weights(10)")
    run(other).assert_outcomes(passed=4)
    other = other.replace("weights(seed)", "torch.eye(12).expand(1, 2, 12, 12)")
    run(other).assert_outcomes(passed=3, failed=1)


def test_two_different_checks_of_one_name_disagree(run: Run, pytester: pytest.Pytester) -> None:
    source = """
    import torch
    def test_it(head_regression):
        head_regression.check(torch.eye(12))
        head_regression.check(torch.full((12, 12), 1 / 12))
    """
    result = run(source, "--attncheck-update")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E       attncheck.CheckFailure: two checks in one test: pass name=",
            "E         L0H0  pattern      diagonal   uniform",
            "E         twice     *; give each name=",
        ]
    )
    assert "accept" not in result.stdout.str()
    assert all(len(line) <= 80 for line in result.stdout.lines if line.startswith("E "))
    assert files_below(pytester.path) == []


@pytest.mark.parametrize("args", [(), ("--attncheck-update",)])
def test_a_second_check_that_disagrees_with_one_that_passed_is_not_written(
    run: Run, pytester: pytest.Pytester, args: tuple[str, ...]
) -> None:
    one = """
    import torch
    def test_it(head_regression):
        head_regression.check(torch.eye(12))
    """
    run(one, "--attncheck-update").assert_outcomes(passed=1)
    path = pytester.path / "__heads__/test_it/test_it.json"
    before = path.read_bytes()
    result = run(one + "    head_regression.check(torch.full((12, 12), 1 / 12))\n", *args)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E       attncheck.CheckFailure: 1 of 1 heads changed: L0H0",
            "E         twice     an earlier check of this test passed; give each name=",
        ]
    )
    assert "accept" not in result.stdout.str()
    assert path.read_bytes() == before


def test_under_hypothesis_what_fails_is_written_once(run: Run, pytester: pytest.Pytester) -> None:
    source = """
    import torch
    from hypothesis import given, settings, strategies as st
    @settings(database=None, max_examples=25)
    @given(key=st.integers(0, {most}))
    def test_it(head_regression, key):
        weights = torch.eye(12)
        if key > 5:
            weights[key] = 1 / 12
        head_regression.check(weights)
    """
    run(source.format(most=5), "--attncheck-update").assert_outcomes(passed=1)
    args = ("--attncheck-artifacts=out", "--junitxml=junit.xml")
    result = run(source.format(most=11), *args)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*1 of 1 heads changed: L0H0*"])
    assert len(list((pytester.path / "out").rglob("*.png"))) == 1
    text = (pytester.path / "junit.xml").read_text()
    assert text.count("attncheck_heads_changed") == 1
