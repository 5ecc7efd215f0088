"""`head_regression` as a user meets it: source, flags, what is seen, exit code, files."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from tests.pytest_plugin.baselines import SAMPLE, files_below, record, set_patterns
from tests.pytest_plugin.conftest import Run


@pytest.mark.parametrize(
    "args",
    [
        (),
        pytest.param(("-n2",), marks=pytest.mark.slow),
        ("-p", "no:xdist"),
    ],
    ids=["plain", "two workers", "no xdist"],
)
@pytest.mark.parametrize("ci", [False, True], ids=["desk", "CI"])
def test_fail_accept_pass_change_fail(
    run: Run,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    ci: bool,
) -> None:
    if ci and args:
        pytest.skip("one way of running is enough")
    set_patterns(pytester, "first_token", "previous_token")
    if ci:
        pytester.makeconftest("import os\nos.environ['CI'] = os.environ['BUILD_NUMBER'] = '1'")

    result = run(SAMPLE, *args)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E       attncheck.CheckFailure: no baseline: 2 heads not compared",
            "E         L0H1  previous token *",
            "E         missing   __heads__/test_it/test_heads.json",
            "E         accept    pytest test_it.py::test_heads --attncheck-update",
        ]
    )
    assert files_below(pytester.path) == []

    result = run(SAMPLE, "--attncheck-update", *args)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["1 baseline file written", "  new       __heads__/test_it/test_heads.json"]
    )
    assert files_below(pytester.path) == ["__heads__/test_it/test_heads.json"]

    result = run(SAMPLE, *args)
    result.assert_outcomes(passed=1)
    assert "attncheck baselines" not in result.stdout.str()

    set_patterns(pytester, "first_token", "uniform")
    before = (pytester.path / "__heads__/test_it/test_heads.json").read_bytes()
    result = run(SAMPLE, "--junitxml=junit.xml", "--attncheck-artifacts=out", *args)
    result.assert_outcomes(failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "E       attncheck.CheckFailure: 1 of 2 heads changed: L0H1",
            "E         head  measure *baseline       now   change  allowed",
            "E         L0H1  pattern         previous token   uniform",
            "E               previous token * -0.* 0.015",
            "E         1 of 2 heads match",
            "E         baseline  __heads__/test_it/test_heads.json",
            "E         recorded  cpu float32 torch *;  now the same",
            "E         accept    pytest test_it.py::test_heads --attncheck-update",
            "*attncheck pattern L0H1*",
            "*attncheck artifacts*",
        ]
    )
    shown = [line for line in result.stdout.lines if line.startswith("E ")]
    assert all(len(line) <= 80 for line in shown)
    assert (pytester.path / "__heads__/test_it/test_heads.json").read_bytes() == before
    assert (pytester.path / "out/test_it.py_test_heads/L0H1.png").exists()
    properties = ElementTree.parse(pytester.path / "junit.xml").findall(".//property")
    named = [(one.get("name"), one.get("value")) for one in properties]
    assert named.count(("attncheck_heads_changed", "L0H1")) == 1


@pytest.mark.parametrize(
    ("words", "missing", "changed"),
    [("new", True, False), ("changed", False, True), ("new,changed", True, True), ("all", 1, 1)],
)
def test_update_words(
    run: Run, pytester: pytest.Pytester, words: str, missing: bool, changed: bool
) -> None:
    path = record(run, pytester, "first_token")
    before = path.read_bytes()
    set_patterns(pytester, "uniform")
    result = run(SAMPLE, f"--attncheck-update={words}")
    result.assert_outcomes(passed=int(changed), failed=int(not changed))
    assert (path.read_bytes() != before) == changed
    if changed:
        result.stdout.fnmatch_lines(["  changed   __heads__/test_it/test_heads.json"])
    path.unlink()
    result = run(SAMPLE, f"--attncheck-update={words}")
    result.assert_outcomes(passed=int(missing), failed=int(not missing))
    assert path.exists() == missing


def test_an_unknown_word_is_a_usage_error(run: Run) -> None:
    for args in (["--attncheck-update", "test_it.py"], ["--attncheck-update=force"]):
        result = run("def test_x(): pass", *args)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["ERROR: --attncheck-update: unknown '*'; expected new,*"])


@pytest.mark.parametrize(
    "setting",
    ["attncheck_stale=maybe", "attncheck_max_weights_mb=lots", "attncheck_max_weights_mb=-1"],
)
def test_wrong_settings_are_usage_errors(run: Run, setting: str) -> None:
    assert run("def test_x(): pass", "-o", setting).ret == pytest.ExitCode.USAGE_ERROR


def test_an_update_writes_only_for_tests_that_pass(run: Run, pytester: pytest.Pytester) -> None:
    source = """
    import pytest, torch
    W = torch.eye(12)[None]
    def test_fails(head_regression):
        head_regression.check(W)
        assert False
    @pytest.mark.xfail
    def test_xfails(head_regression):
        head_regression.check(W)
        assert False
    def test_skips(head_regression):
        head_regression.check(W)
        pytest.skip()
    def test_passes(head_regression):
        head_regression.check(W)
    """
    run(source, "--attncheck-update").assert_outcomes(failed=1, xfailed=1, skipped=1, passed=1)
    assert files_below(pytester.path) == ["__heads__/test_it/test_passes.json"]


@pytest.mark.parametrize("args", [(), ("--attncheck-update",)])
def test_a_wrong_tolerance_is_told_before_anything_is_written(
    run: Run, pytester: pytest.Pytester, args: tuple[str, ...]
) -> None:
    set_patterns(pytester, "uniform")
    result = run(SAMPLE.replace("check(maps)", "check(maps, atol={'foo': 1})"), *args)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *ValueError: atol: no measure 'foo'; the measures are *"])
    assert files_below(pytester.path) == []


def test_drift_is_said_and_rewritten_by_all_only(run: Run, pytester: pytest.Pytester) -> None:
    source = """
    import torch
    from pathlib import Path
    def test_heads(head_regression):
        share = float(Path("share.txt").read_text())
        even = torch.full((2, 12, 12), 1 / 12)
        head_regression.check((1 - share) * even + share * torch.eye(12))
    """
    (pytester.path / "share.txt").write_text("0")
    run(source, "--attncheck-update")
    path = pytester.path / "__heads__/test_it/test_heads.json"
    before = path.read_bytes()
    (pytester.path / "share.txt").write_text("0.004")
    for args in ((), ("--attncheck-update=new,changed",)):
        result = run(source, *args)
        result.assert_outcomes(passed=1)
        result.stdout.fnmatch_lines(
            [
                "1 check passed with drift within what is allowed",
                "  test_it.py::test_heads: 2 of 2 heads drifted by up to 0.00*",
            ]
        )
        assert path.read_bytes() == before
    run(source, "--attncheck-update").stdout.fnmatch_lines(["  refreshed __heads__/*"])
    assert path.read_bytes() != before
    assert "attncheck baselines" not in run(source, "--attncheck-update").stdout.str()


@pytest.mark.parametrize("args", [(), ("--attncheck-update",)])
@pytest.mark.parametrize("damage", ["cut", "foreign", "binary", "conflict"])
def test_damaged_files_are_named_and_left(
    run: Run, pytester: pytest.Pytester, damage: str, args: tuple[str, ...]
) -> None:
    path = record(run, pytester, "first_token")
    text = path.read_bytes()
    damaged = {
        "cut": text[: len(text) // 2],
        "foreign": b'{"name": "package"}',
        "binary": b"\x80\x04\x95",
        "conflict": text.replace(b"{\n", b"{\n<<<<<<< HEAD\n", 1),
    }[damage]
    path.write_bytes(damaged)
    result = run(SAMPLE, *args)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E       attncheck.BaselineError: baseline: *test_heads.json *"])
    assert path.read_bytes() == damaged


def test_a_full_disk_fails_the_test_not_the_run(run: Run, pytester: pytest.Pytester) -> None:
    path = record(run, pytester, "first_token")
    before = path.read_bytes()
    set_patterns(pytester, "uniform")
    pytester.makeconftest(
        """
        import os
        def full(*_):
            raise OSError(28, "No space left on device")
        os.fsync = full
        """
    )
    import os

    kept = os.fsync
    try:
        result = run(SAMPLE, "--attncheck-update")
    finally:
        os.fsync = kept
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["attncheck: baseline *test_heads.json was not written:*No space*"])
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["test_heads.json"]


PARAMETRIZED = """
import pytest, torch
@pytest.mark.parametrize("n", range({count}))
def test_heads(n, head_regression):
    weights = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(n)).softmax(-1)
    head_regression.check(weights)
"""


@pytest.mark.parametrize(
    ("count", "workers"),
    [(16, 2), pytest.param(400, 8, marks=pytest.mark.slow)],
)
def test_no_baseline_is_lost_over_xdist(
    run: Run, pytester: pytest.Pytester, count: int, workers: int
) -> None:
    source = PARAMETRIZED.format(count=count)
    result = run(source, "--attncheck-update", f"-n{workers}")
    result.assert_outcomes(passed=count)
    result.stdout.fnmatch_lines([f"{count} baseline files written"])
    files = files_below(pytester.path)
    assert files == sorted(f"__heads__/test_it/test_heads[{n}].json" for n in range(count))
    assert sum("  new  " in line for line in result.stdout.lines) == count
    for file in files:
        assert json.loads((pytester.path / file).read_text())["schema"] == "attncheck.heads.1"
    result = run(source)
    result.assert_outcomes(passed=count)
    assert "attncheck baselines" not in result.stdout.str()


def test_outside_a_test_it_says_so(run: Run) -> None:
    from attncheck.pytest_plugin.update import Ledger

    with pytest.raises(RuntimeError, match="no test is running"):
        Ledger(frozenset()).current()


def test_a_kept_failure_keeps_no_tensor(run: Run) -> None:
    source = """
    import gc, weakref, torch, pytest
    from attncheck import CheckFailure
    KEPT = []
    def test_it(head_regression):
        weights = torch.eye(12)
        alive = weakref.ref(weights)
        gc.disable()
        try:
            head_regression.check(weights)
        except CheckFailure as failure:
            KEPT.append(failure)
        finally:
            del weights
        assert alive() is None
        gc.enable()
    """
    run(source).assert_outcomes(passed=1)
