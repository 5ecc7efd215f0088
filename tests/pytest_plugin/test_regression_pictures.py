"""`head_regression` with weights: pictures of before and after, and what they may take."""

from __future__ import annotations

import re

import pytest

from tests.pytest_plugin.baselines import SAMPLE, files_below, record, set_patterns
from tests.pytest_plugin.conftest import Run


def test_pictures_of_before_and_after(run: Run, pytester: pytest.Pytester) -> None:
    import numpy as np

    source = SAMPLE.replace("check(maps)", "check(maps, weights=True)")
    set_patterns(pytester, "first_token", "previous_token")
    run(source, "--attncheck-update").assert_outcomes(passed=1)
    assert re.fullmatch(
        r"__heads__/test_it/test_heads\.[0-9a-f]{8}\.safetensors", files_below(pytester.path)[0]
    )
    set_patterns(pytester, "first_token", "uniform")
    result = run(source, "--attncheck-artifacts=out")
    result.stdout.fnmatch_lines(
        ["E *divergence * nats", "baseline * now", "*!! moved most*", "out/*/L0H1.png"]
    )
    with np.load(pytester.path / "out/test_it.py_test_heads/attn.npz") as held:
        assert held["expected"].shape == held["weights"].shape == (16, 16)
        assert abs(held["expected"] - held["weights"]).max() > 0.5


def test_weights_have_a_limit(run: Run, pytester: pytest.Pytester) -> None:
    set_patterns(pytester, "uniform")
    settings = ("-o", "attncheck_baseline_weights=true", "-o", "attncheck_max_weights_mb=0.0001")
    result = run(SAMPLE, "--attncheck-update", *settings)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["E *ValueError: weights: 0.0 MB, more than attncheck_max_weights_mb*"]
    )
    run(SAMPLE, "--attncheck-update", *settings[:2]).assert_outcomes(passed=1)
    assert len(files_below(pytester.path)) == 2
    profile = "import attncheck, torch\ndef test_x(head_regression):\n    head_regression.check("
    profile += "attncheck.profile_attention(torch.eye(12)), weights=True)\n"
    run(profile, "--attncheck-update").stdout.fnmatch_lines(["E *a profile holds none*"])


@pytest.mark.parametrize("args", [(), pytest.param(("-n2",), marks=pytest.mark.slow)])
def test_pytest_html_gets_the_pictures(
    run: Run, pytester: pytest.Pytester, args: tuple[str, ...]
) -> None:
    pytest.importorskip("pytest_html")
    record(run, pytester, "first_token")
    set_patterns(pytester, "uniform")
    result = run(SAMPLE, "--html=r.html", "--self-contained-html", *args)
    result.assert_outcomes(failed=1)
    assert (pytester.path / "r.html").read_text().count("data:image/png") == 1
