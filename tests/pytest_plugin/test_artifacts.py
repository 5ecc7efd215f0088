"""What a failed assertion shows and leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from attncheck.pytest_plugin.files import folder_name
from tests.pytest_plugin.conftest import Run

FAILING = """
import torch
from attncheck import assert_causal

def test_causal():
    weights = torch.eye(6).repeat(2, 3, 1, 1)
    weights[1, 2, 1, 4] = 0.0625
    assert_causal(weights)

def test_fine():
    assert_causal(torch.eye(3))
"""

FAILURE = """
>       assert_causal(weights)
E       attncheck.CheckFailure: not causal: 1 of 90 future weights > 1e-05
E{blank}
E         attn   f32[2,3,6,6] (batch, head, query, key)
E         rule   attn[..., query, key] <= 1e-05 where key > query
E{blank}
E         head  future mass  weights  worst
E         L0H2       0.0052        1  0.0625 at batch 1, query 1 -> key 4
E         2 of 3 heads pass
E         next   add -inf to the scores of later keys before softmax

test_it.py:7: CheckFailure
------------------------ attncheck pattern L0H2 batch 1 ------------------------
██
··██    !!
····██
······██
········██
··········██
██ 1  !! breaks the rule
""".replace("{blank}", "       ")

FILES = """
----------------------------- attncheck artifacts ------------------------------
out/test_it.py_test_causal/L0H2.png
out/test_it.py_test_causal/attn.npz
out/test_it.py_test_causal/finding.json
"""


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_failure_word_for_word(run: Run, pytester: pytest.Pytester) -> None:
    result = run(FAILING)
    result.assert_outcomes(passed=1, failed=1)
    assert FAILURE in result.stdout.str()
    assert "checks/causal.py" not in result.stdout.str()
    assert "attncheck artifacts" not in result.stdout.str()
    assert files_below(pytester.path) == ["test_it.py"]


@pytest.mark.parametrize("args", [[], ["-n2"]], ids=["one process", "two workers"])
def test_artifacts(run: Run, pytester: pytest.Pytester, args: list[str]) -> None:
    result = run(FAILING, "--attncheck-artifacts=out", "--junitxml=junit.xml", *args)
    result.assert_outcomes(passed=1, failed=1)
    assert FAILURE + FILES.lstrip("\n") in result.stdout.str()
    out = pytester.path / "out"
    names = ["L0H2.png", "attn.npz", "finding.json"]
    assert files_below(out) == [
        ".gitignore",
        *(f"test_it.py_test_causal/{name}" for name in names),
    ]
    assert (out / ".gitignore").read_text() == "*\n"
    own = out / "test_it.py_test_causal"
    described = json.loads((own / "finding.json").read_text())
    assert described["verdict"] == "not causal: 1 of 90 future weights > 1e-05"
    assert described["test"] == "test_it.py::test_causal"
    assert described["offenders"][0]["at"]["key"] == 4
    with np.load(own / "attn.npz", allow_pickle=False) as held:
        assert held["weights"].shape == (6, 6)
        assert held["weights"][1, 4] == 0.0625
        assert held["offending"].nonzero()[1].tolist() == [4]
        assert int(held["batch"]) == 1
    assert (own / "L0H2.png").read_bytes().startswith(b"\x89PNG")
    properties = ElementTree.parse(pytester.path / "junit.xml").findall(".//property")
    assert {(one.get("name"), one.get("value")) for one in properties} == {
        ("attncheck_artifacts", str(own))
    }


def test_a_second_run_writes_the_same_bytes(run: Run, pytester: pytest.Pytester) -> None:
    own = pytester.path / "out" / "test_it.py_test_causal"
    run(FAILING, "--attncheck-artifacts=out")
    first = {path.name: path.read_bytes() for path in own.iterdir()}
    (own / "L0H1.png").write_bytes(b"of an earlier run")
    run(FAILING, "--attncheck-artifacts=out")
    assert {path.name: path.read_bytes() for path in own.iterdir()} == first


def test_a_property_test_writes_once(run: Run, pytester: pytest.Pytester) -> None:
    result = run(
        """
        import torch
        from hypothesis import given, settings, strategies as st
        from attncheck import assert_causal

        @settings(database=None)
        @given(key=st.integers(0, 9))
        def test_search(key):
            weights = torch.eye(10)
            weights[3, key] = 1.0
            assert_causal(weights)
        """,
        "--attncheck-artifacts=out",
    )
    result.assert_outcomes(failed=1)
    assert result.stdout.str().count("attncheck pattern L0H0") == 1
    described = json.loads((pytester.path / "out/test_it.py_test_search/finding.json").read_text())
    assert described["offenders"][0]["at"]["key"] == 4
    assert len(files_below(pytester.path / "out")) == 4


def test_no_files_for_expected_failures_and_raises(run: Run, pytester: pytest.Pytester) -> None:
    result = run(
        """
        import pytest
        import torch
        from attncheck import CheckFailure, assert_causal

        @pytest.mark.xfail(strict=True)
        def test_expected():
            assert_causal(torch.ones(2, 2) / 2)

        def test_raises():
            with pytest.raises(CheckFailure):
                assert_causal(torch.ones(2, 2) / 2)

        def test_other():
            assert 1 == 2
        """,
        "--attncheck-artifacts=out",
        "-rx",
    )
    result.assert_outcomes(passed=1, xfailed=1, failed=1)
    assert not (pytester.path / "out").exists()
    assert "attncheck pattern" not in result.stdout.str()


def test_a_group_of_failures_writes_each(run: Run, pytester: pytest.Pytester) -> None:
    result = run(
        """
        import torch
        from attncheck import CheckFailure, assert_causal, assert_entropy

        def test_both():
            found = []
            for check, options in ((assert_causal, {}), (assert_entropy, {"max": 0.5})):
                try:
                    check(torch.ones(4, 4) / 4, **options)
                except CheckFailure as failure:
                    found.append(failure)
            raise ExceptionGroup("two", found)
        """,
        "--attncheck-artifacts=out",
    )
    result.assert_outcomes(failed=1)
    assert files_below(pytester.path / "out/test_it.py_test_both") == [
        "L0H0-2.png",
        "L0H0.png",
        "attn-2.npz",
        "attn.npz",
        "finding-2.json",
        "finding.json",
    ]


def test_the_number_of_writing_tests_is_limited(run: Run, pytester: pytest.Pytester) -> None:
    source = """
    import pytest
    import torch
    from attncheck import assert_causal

    @pytest.mark.parametrize("n", range(2, 6))
    def test_many(n):
        assert_causal(torch.ones(n, n) / n)
    """
    result = run(source, "--attncheck-artifacts=out", "-o", "attncheck_max_artifacts=2")
    result.assert_outcomes(failed=4)
    assert result.stdout.str().count("not written: attncheck_max_artifacts = 2 is reached") == 2
    folders = sorted(path.name for path in (pytester.path / "out").iterdir() if path.is_dir())
    assert folders == ["test_it.py_test_many_2_", "test_it.py_test_many_3_"]


def test_a_folder_that_cannot_be_made_spoils_nothing(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makefile(".txt", blocked="a file where a folder should be")
    result = run(FAILING, "--attncheck-artifacts=blocked.txt/out")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["not written: *blocked.txt*"])


def test_evidence_is_dropped_once_used(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import sys
        import pytest

        KEPT = []

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_call(item):
            try:
                return (yield)
            except AssertionError as error:
                KEPT.append(error)
                raise

        def pytest_unconfigure():
            print("kept", [error.finding.evidence for error in KEPT])
        """
    )
    result = run(FAILING)
    assert "kept [None]" in result.stdout.str()


def test_failures_in_setup_and_in_unittest_show_too(run: Run) -> None:
    result = run(
        """
        import unittest
        import pytest
        import torch
        from attncheck import assert_causal

        @pytest.fixture
        def broken():
            assert_causal(torch.ones(2, 2) / 2)

        def test_setup(broken):
            pass

        class TestOld(unittest.TestCase):
            def test_it(self):
                assert_causal(torch.ones(2, 2) / 2)
        """
    )
    result.assert_outcomes(errors=1, failed=1)
    assert result.stdout.str().count("- attncheck pattern L0H0 -") == 2


def test_every_check_shows_a_picture(run: Run, pytester: pytest.Pytester) -> None:
    result = run(
        """
        import pytest
        import torch
        from attncheck import CHECKS
        import attncheck.checks

        WEIGHTS = torch.ones(1, 2, 6, 6) / 6
        TOKENS = list("$a^b_c")
        OPTIONS = {
            "mask_respected": {"mask": torch.arange(6) < 4},
            "sliding_window": {"window": 2},
            "segments_isolated": {"segment_ids": [0, 0, 0, 1, 1, 1]},
            "entropy": {"max": 0.1},
            "sink_mass": {"max": 0.01},
            "pattern": {"pattern": "diagonal", "min_mass": 1.0},
            "attention_close": {"expected": torch.eye(6).expand(1, 2, 6, 6)},
        }

        @pytest.mark.parametrize("name", sorted(CHECKS))
        def test_check(name):
            weights = WEIGHTS * float("nan") if name == "row_stochastic" else WEIGHTS
            options = OPTIONS.get(name, {})
            getattr(attncheck.checks, f"assert_{name}")(weights, tokens=TOKENS, **options)
        """,
        "--attncheck-artifacts=out",
        *("-o", "attncheck_max_artifacts=2"),
    )
    result.assert_outcomes(failed=10)
    assert result.stdout.str().count("- attncheck pattern L0H") == 10
    failures = [line for line in result.stdout.lines if line.startswith(("E ", "-"))]
    assert max(map(len, failures)) <= 80
    assert len(list((pytester.path / "out").glob("*/*.png"))) == 2
    with np.load(next((pytester.path / "out").glob("*causal*/attn.npz"))) as held:
        assert "".join(held["tokens"]) == "$a^b_c"


def test_folder_names_are_short_safe_and_distinct() -> None:
    ids = [
        "tests/test_a.py::test_x",
        "tests/test_a.py::test_x[1-2]",
        "tests/test_a.py::test_x[a/b]",
        "tests/test_a.py::test_x[a:b]",
        "tests/test_a.py::test_x[a_b]",
        "tests/test_a.py::Test::test_x[" + "y" * 300 + "]",
        "tests/test_a.py::Test::test_x[" + "y" * 301 + "]",
        "tests/test_a.py::test_x[<script>\ud800]",
        "tests/test_a.py::test_x[../../etc]",
    ]
    names = [folder_name(nodeid) for nodeid in ids]
    assert len(set(names)) == len(ids)
    for name in names:
        assert len(name) <= 120
        assert "/" not in name
        assert name.isascii()
    assert names[0] == "tests_test_a.py_test_x"
    assert names[1] == "tests_test_a.py_test_x_1-2_"


def test_a_failure_with_something_else_in_it_ends_no_run(run: Run) -> None:
    source = """
    import attncheck

    def test_odd():
        raise attncheck.CheckFailure("odd", finding={"a": 1})

    def test_odd_after_import():
        import attncheck.checks
        raise attncheck.CheckFailure("odd", finding={"a": 1})
    """
    result = run(source, "--attncheck-artifacts=out")
    result.assert_outcomes(failed=2)
    result.stdout.no_fnmatch_line("*INTERNALERROR*")


def test_whatever_breaks_in_writing_ends_no_run(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture(autouse=True)
        def broken(monkeypatch):
            from attncheck.pytest_plugin import panels

            def save_figure(*args):
                raise RuntimeError("no fonts")

            monkeypatch.setattr(panels, "save_figure", save_figure)
        """
    )
    result = run(FAILING, "--attncheck-artifacts=out")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["not written: no fonts"])


def test_a_teardown_that_fails_too_overwrites_nothing(run: Run, pytester: pytest.Pytester) -> None:
    source = """
    import pytest
    import torch
    from attncheck import assert_causal

    @pytest.fixture
    def late():
        yield
        assert_causal(torch.ones(4, 4) / 4)

    def test_twice(late):
        assert_causal(torch.ones(3, 3) / 3)
    """
    for _ in range(2):  # and the second run replaces the first
        run(source, "--attncheck-artifacts=out").assert_outcomes(failed=1, errors=1)
        own = pytester.path / "out" / "test_it.py_test_twice"
        assert sorted(path.name for path in own.glob("*.json")) == [
            "finding-2.json",
            "finding.json",
        ]
        subjects = [
            json.loads((own / name).read_text())["subject"]
            for name in ("finding.json", "finding-2.json")
        ]
        assert [text.split()[0] for text in subjects] == ["f32[3,3]", "f32[4,4]"]
