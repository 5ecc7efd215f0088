"""What a user sees of an error: the line of the test and the message, and our source if asked."""

from __future__ import annotations

import sys

import pytest

from tests.pytest_plugin.conftest import Run

DELIBERATE = """
import pytest, torch, unittest
import attncheck

class Odd(torch.nn.Module):
    def forward(self, x):
        return x

class Inner(torch.nn.Module):
    def forward(self, x):
        return attncheck.assert_causal(x, atol="a")

def test_capture(attention_extractor):
    attention_extractor(Odd()).get_attention(torch.randn(1, 4, 8))

def test_argument():
    attncheck.assert_pattern(torch.eye(9), "diagnal", min_mass=0.5)

def test_profile():
    attncheck.profile_model(Odd(), torch.randn(1, 4, 8))

def test_within():
    attncheck.profile_model(Inner(), torch.eye(9))

def test_key():
    attncheck.profile_attention(torch.eye(12))["nothing"]

def test_heads(head_regression):
    head_regression.check("nothing")

class TestUnit(unittest.TestCase):
    def test_unit(self):
        attncheck.profile_model(Odd(), torch.randn(1, 4, 8))
"""

BUG = """
import torch
import attncheck
import attncheck.checks.pattern as own

def test_bug(monkeypatch):
    monkeypatch.setattr(own, "_pattern_name", None)
    attncheck.assert_pattern(torch.eye(9), "diagonal", min_mass=0.5)
"""

BUG_WHILE_COLLECTING = """
import torch
import attncheck
import attncheck.checks.pattern as own

held, own._pattern_name = own._pattern_name, None
try:
    attncheck.assert_pattern(torch.eye(9), "diagonal", min_mass=0.5)
finally:
    own._pattern_name = held
"""


def frames(result: pytest.RunResult) -> list[str]:
    """Lines that name a file and a line of ours."""
    return [line for line in result.stdout.lines if "attncheck/" in line and ".py:" in line]


@pytest.mark.parametrize("style", ["auto", "long", "short", "line"])
def test_an_error_of_ours_shows_the_users_line(run: Run, style: str) -> None:
    result = run(DELIBERATE, f"--tb={style}")
    result.assert_outcomes(failed=7)
    assert frames(result) == []
    assert not any("torch/nn" in line or "contextlib.py" in line for line in result.stdout.lines)
    if style != "line":
        text = result.stdout.str()
        assert text.count("CaptureError: captured no attention in Odd") >= 3
        for line in ("get_attention(torch", '"diagnal"', '["nothing"]', 'atol="a"', 'check("noth'):
            assert line in text


def test_full_trace_shows_everything(run: Run) -> None:
    result = run(DELIBERATE, "--full-trace", "-k", "test_profile")
    assert any("capture/profile_model.py:" in line for line in frames(result))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("attncheck.parametrize_with_checks([3])", "TypeError: function: expected a callable"),
        ("attncheck.parametrize_with_checks([print], effort='q')", "ValueError: effort: expected"),
        ("attncheck.parametrize_with_model_checks([3])", "TypeError: factories: one is int"),
        ("attncheck.create_synthetic_attention(9, 'x')", "ValueError: pattern: unknown name 'x'"),
    ],
)
def test_an_error_of_ours_while_collecting_shows_the_users_line(
    run: Run, line: str, message: str
) -> None:
    result = run(f"import attncheck\nkept = {line}\n")
    result.assert_outcomes(errors=1)
    assert frames(result) == []
    result.stdout.fnmatch_lines([f"    kept = {line.replace('[', '[[]')}", f"E *{message}*"])
    assert frames(run(f"import attncheck\nkept = {line}\n", "--full-trace"))


def test_what_is_not_ours_is_left_as_it_is_while_collecting(run: Run) -> None:
    result = run("import attncheck\nkept = attncheck.parametrize_with_checks()\n")
    result.stdout.fnmatch_lines(["E *missing 1 required positional argument: 'functions'"])
    result = run("import attncheck, torch\nkept = torch.nn.Linear(3, 3)(torch.ones(4))\n")
    result.assert_outcomes(errors=1)
    shown = [line.partition(":")[0] for line in result.stdout.lines if ".py:" in line]
    for file in ("test_it.py", "torch/nn/modules/module.py", "torch/nn/modules/linear.py"):
        assert any(line.endswith(file) for line in shown), file


def test_what_pytest_says_of_a_module_that_is_not_there_is_left_as_it_is(run: Run) -> None:
    result = run("import attncheck\nimport attncheck_no_such_module\n")
    result.assert_outcomes(errors=1)
    recorder: pytest.HookRecorder = result.reprec  # type: ignore[attr-defined]
    [report] = [one for one in recorder.getreports("pytest_collectreport") if one.failed]
    assert hasattr(report.longrepr, "toterminal")  # a report written again is plain text here


def test_a_bug_of_ours_while_collecting_shows_where_it_is(run: Run) -> None:
    result = run(BUG_WHILE_COLLECTING)
    result.assert_outcomes(errors=1)
    assert any("checks/pattern.py:" in line for line in frames(result))
    result.stdout.fnmatch_lines(["E *TypeError: 'NoneType' object is not callable"])


def test_a_bug_of_ours_shows_where_it_is(run: Run) -> None:
    result = run(BUG)
    result.assert_outcomes(failed=1)
    assert any("checks/pattern.py:" in line for line in frames(result))
    result.stdout.fnmatch_lines(["E *TypeError: 'NoneType' object is not callable"])


def test_what_pytest_is_told_holds_for_the_report_only(run: Run) -> None:
    run(DELIBERATE, "-k", "test_profile").assert_outcomes(failed=1)
    modules = [sys.modules[name] for name in ("attncheck.capture.profile_model", "contextlib")]
    assert not any(hasattr(module, "__tracebackhide__") for module in modules)
