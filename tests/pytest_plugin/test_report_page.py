"""``--attncheck-report``: one page for a run, whoever ran its tests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.pytest_plugin.conftest import Run

SOURCE = """
import pytest
import torch
from attncheck import assert_causal, assert_entropy, profile_attention
from attncheck.models import load_tiny_model, repeated_tokens

def test_bare():
    weights = torch.eye(6).repeat(2, 3, 1, 1)
    weights[1, 2, 1, 4] = 0.0625
    assert_causal(weights, tokens=[["<script>alert(1)</script>", *"bcdef"]] * 2)

def test_fine(attention_extractor):
    extractor = attention_extractor(load_tiny_model())
    assert_causal(extractor.get_attention(repeated_tokens(12)))

@pytest.mark.parametrize("word", ["a", "</script>"])
def test_model(attention_extractor, word):
    extractor = attention_extractor(load_tiny_model())
    assert_entropy(extractor.get_attention(repeated_tokens(12)), max=0.2)

def test_given(attention_report):
    attention_report.add(torch.eye(12), "by hand", tokens=list("abcdefghijkl"))
    attention_report.add(profile_attention(torch.eye(16)), "a profile")
    attention_report.add("no attention")

def test_nothing(attention_extractor):
    attention_extractor(load_tiny_model())
"""


def data_of(page: str) -> Any:
    found = re.search(r'type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.mark.parametrize("args", [[], ["-n2"]], ids=["one process", "two workers"])
def test_the_page_of_a_run(run: Run, pytester: pytest.Pytester, args: list[str]) -> None:
    result = run(SOURCE, "--attncheck-report=out/page.html", "--junitxml=junit.xml", *args)
    result.assert_outcomes(passed=3, failed=3)
    assert "attncheck report: 3 failures, 6 heads: out/page.html" in result.stdout.str()
    assert result.stdout.str().count("attncheck report:") == 1
    page = (pytester.path / "out" / "page.html").read_text()
    assert page.count('<article class="failure"') == 3
    assert page.count("<script") == 2
    assert page.index('id="failures"') < page.index('class="model"')
    assert "not causal: 1 of 90 future weights" in page
    assert "test_model[&lt;/script&gt;]" in page
    models = data_of(page)["models"]
    assert [model["name"] for model in models] == ["TinyTransformer", "by hand", "a profile"]
    assert models[0]["tests"] == [
        "test_it.py::test_fine",
        "test_it.py::test_model[</script>]",
        "test_it.py::test_model[a]",
    ]
    assert [head["failed"] for head in models[0]["heads"]] == [True, False, True, True]
    assert [len(model["heads"][0]["maps"]) for model in models] == [1, 1, 0]
    assert models[1]["tokens"] == list("abcdefghijkl")
    assert "attncheck_report" not in (pytester.path / "junit.xml").read_text()


def test_one_process_and_workers_write_the_same(run: Run, pytester: pytest.Pytester) -> None:
    run(SOURCE, "--attncheck-report=one.html")
    run(SOURCE, "--attncheck-report=two.html", "-n2")
    assert (pytester.path / "one.html").read_bytes() == (pytester.path / "two.html").read_bytes()


def test_without_the_option_nothing_is_kept(run: Run, pytester: pytest.Pytester) -> None:
    result = run(
        """
        import torch
        from attncheck.pytest_plugin.report import CAPTURED

        def test_it(attention_report, request):
            attention_report.add(torch.eye(12))
            assert CAPTURED not in request.node.stash
        """
    )
    result.assert_outcomes(passed=1)
    assert "attncheck report" not in result.stdout.str()
    assert [path.name for path in pytester.path.iterdir()] == ["test_it.py"]


@pytest.mark.parametrize(("given", "message"), [("", "is empty"), (".", ". is a folder")])
def test_a_place_that_cannot_be_is_refused(run: Run, given: str, message: str) -> None:
    result = run("def test_it(): pass", f"--attncheck-report={given}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"--attncheck-report: {message}" in result.stderr.str()


def test_a_disk_that_refuses_spoils_no_run(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makefile(".txt", blocked="a file")
    result = run("def test_it(): pass", "--attncheck-report=blocked.txt/page.html")
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["attncheck report: not written: *page.html*"])


def test_too_many_heads_are_counted(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import pytest
        from attncheck.pytest_plugin import report

        patch = pytest.MonkeyPatch()

        def pytest_configure():
            patch.setattr(report, "MOST_HEADS", 3)

        def pytest_unconfigure():
            patch.undo()
        """
    )
    result = run(
        """
        import pytest
        import torch

        @pytest.mark.parametrize("n", range(12, 17))
        def test_it(attention_report, n):
            attention_report.add(torch.eye(n))
        """,
        "--attncheck-report=page.html",
    )
    result.assert_outcomes(passed=5)
    page = (pytester.path / "page.html").read_text()
    assert len(data_of(page)["models"]) == 3
    assert "2 more captures are left out: a page holds 3 heads" in page


def test_expected_failures_and_setups(run: Run, pytester: pytest.Pytester) -> None:
    result = run(
        """
        import pytest
        import torch
        from attncheck import assert_causal

        @pytest.fixture
        def broken():
            assert_causal(torch.ones(2, 2) / 2)

        def test_setup(broken):
            pass

        @pytest.mark.xfail(strict=True)
        def test_expected():
            assert_causal(torch.ones(2, 2) / 2)
        """,
        "--attncheck-report=page.html",
    )
    result.assert_outcomes(errors=1, xfailed=1)
    page = Path(pytester.path, "page.html").read_text()
    assert page.count('<article class="failure"') == 1
    assert "test_it.py::test_setup" in page
