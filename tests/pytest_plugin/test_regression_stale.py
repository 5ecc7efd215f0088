"""Baselines that no test uses: judged on whole files only, removed only when asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pytest_plugin.conftest import Run

TWO = """
import pytest, torch
def test_one(head_regression):
    head_regression.check(torch.eye(12))
def test_two(head_regression):
    head_regression.check(torch.eye(12))
"""
ONE = TWO.replace("def test_two", "def check_two")
SKIPPING = ONE + "def test_skips():\n    pytest.skip()\n"
FAILING = TWO.replace("def test_two(head_regression):", "def test_two():\n    assert False")
UNUSED = TWO.replace("    head_regression.check(torch.eye(12))\n", "    pass\n")
STALE = ["1 stale baseline: no test uses what is in", "  __heads__/test_it/test_two.json"]


@pytest.fixture
def folder(run: Run, pytester: pytest.Pytester) -> Path:
    run(TWO, "--attncheck-update").assert_outcomes(passed=2)
    return pytester.path / "__heads__" / "test_it"


def stale_in(result: pytest.RunResult) -> bool:
    return "stale" in result.stdout.str()


def test_a_test_that_is_gone(run: Run, folder: Path) -> None:
    result = run(ONE)
    result.stdout.fnmatch_lines([*STALE, "  remove them with --attncheck-update, or by hand"])
    assert result.ret == pytest.ExitCode.OK
    assert not stale_in(run(TWO))


@pytest.mark.parametrize(
    ("source", "args"),
    [
        (ONE, ["test_it.py::test_one"]),
        (ONE + "def test_b(): pass\n", ["-k", "one"]),
        (ONE + "def test_b(): pass\n", ["--deselect", "test_it.py::test_b"]),
        (ONE + "def test_b(): assert 0\ndef test_c(): pass\n", ["-x"]),
        (SKIPPING, []),
        (ONE, ["--collect-only"]),
        (FAILING, []),
        (ONE, ["-o", "attncheck_stale=ignore"]),
    ],
    ids=["node", "k", "deselect", "x", "skip", "collect", "failed", "ignored"],
)
@pytest.mark.parametrize("update", [False, True], ids=["judged", "updated"])
def test_nothing_is_said_or_removed(
    run: Run, folder: Path, source: str, args: list[str], update: bool
) -> None:
    if update and "attncheck_stale=ignore" in args:
        pytest.skip("an update removes what is stale, said or not")
    result = run(source, *args, *["--attncheck-update"] * update)
    assert not stale_in(result)
    assert (folder / "test_two.json").exists()


def test_a_test_that_no_longer_checks(run: Run, folder: Path) -> None:
    assert "2 stale baselines" in run(UNUSED).stdout.str()


def test_as_an_error(run: Run, folder: Path) -> None:
    result = run(ONE, "-o", "attncheck_stale=error")
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert run(TWO, "-o", "attncheck_stale=error").ret == pytest.ExitCode.OK


@pytest.mark.parametrize("words", ["new", "changed", "new,changed", "all"])
def test_only_all_removes(run: Run, folder: Path, words: str) -> None:
    result = run(ONE, f"--attncheck-update={words}")
    assert (folder / "test_two.json").exists() == (words != "all")
    if words == "all":
        result.stdout.fnmatch_lines(["1 stale baseline removed", STALE[1]])
    assert (folder / "test_one.json").exists()


def test_a_test_file_that_is_gone(run: Run, folder: Path, pytester: pytest.Pytester) -> None:
    gone = folder.parent / "test_gone"
    gone.mkdir()
    (folder / "test_two.json").rename(gone / "test_x.json")
    assert not stale_in(run(ONE, "test_it.py"))
    result = run(ONE)
    result.stdout.fnmatch_lines(["1 stale baseline: *", "  __heads__/test_gone/test_x.json"])
    run(ONE, "--attncheck-update")
    assert not gone.exists()


def test_other_machines_and_damaged_files_are_left(run: Run, folder: Path) -> None:
    held = (folder / "test_two.json").read_text()
    (folder / "test_two.json").write_text(held.replace('"device": "cpu"', '"device": "cuda-9.0"'))
    (folder / "test_three.json").write_text("{")
    (folder / "test_one@cuda-9.json").write_text(held)
    assert not stale_in(run(ONE, "--attncheck-update"))
    assert len(list(folder.iterdir())) == 4


@pytest.mark.slow
def test_over_xdist(run: Run, folder: Path) -> None:
    run(ONE, "-n2").stdout.fnmatch_lines(STALE)
    assert not stale_in(run(TWO, "-n2"))
    assert not stale_in(run(SKIPPING, "-n2"))
    run(ONE, "-n2", "--attncheck-update").stdout.fnmatch_lines(["1 stale baseline removed"])
    assert not (folder / "test_two.json").exists()
