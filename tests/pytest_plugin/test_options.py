"""Options and ini settings, and what a user sees of them."""

from __future__ import annotations

import pytest
import torch

from attncheck.pytest_plugin.device import resolve_device
from tests.pytest_plugin.conftest import Run

EMPTY = "def test_empty():\n    pass\n"
DEVICE = "def test_device(attention_device):\n    assert str(attention_device) == 'cpu'\n"


def test_help_names_every_option_with_its_default(run: Run) -> None:
    text = " ".join(run(EMPTY, "--help").stdout.str().split())
    assert "--attncheck-device=DEVICE" in text
    assert "--attncheck-artifacts=DIR" in text
    assert "Default: write nothing." in text
    assert "attncheck_device (string): Device of the fixtures (default: cpu)." in text
    assert "attncheck_max_artifacts" in text


def test_header_only_with_v(run: Run) -> None:
    assert "attncheck:" not in run(EMPTY).stdout.str()
    run(EMPTY, "-v").stdout.fnmatch_lines(["attncheck: *, device cpu, artifacts off"])
    run(EMPTY, "-v", "--attncheck-artifacts=out").stdout.fnmatch_lines(
        ["attncheck: *, device cpu, artifacts *out"]
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--attncheck-device=tpu"], "ERROR: --attncheck-device: unknown device 'tpu'; expected*"),
        (["-o", "attncheck_device=gpu"], "ERROR: --attncheck-device: unknown device 'gpu'*"),
        (["-o", "attncheck_max_artifacts=-1"], "ERROR: attncheck_max_artifacts: got '-1'*"),
        (["--attncheck-artifacts=test_it.py"], "ERROR: --attncheck-artifacts: *is a file*"),
    ],
)
def test_wrong_settings_are_usage_errors(run: Run, args: list[str], message: str) -> None:
    result = run(EMPTY, *args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


@pytest.mark.parametrize("args", [[], ["--attncheck-device=cpu"], ["-o", "attncheck_device=cpu"]])
def test_device_is_cpu_by_default(run: Run, args: list[str]) -> None:
    run(DEVICE, *args).assert_outcomes(passed=1)


def test_the_option_wins_over_the_ini_setting(run: Run) -> None:
    run(DEVICE, "-o", "attncheck_device=xpu:7", "--attncheck-device=cpu").assert_outcomes(passed=1)


def test_a_device_that_is_not_there_is_an_error_and_no_skip(run: Run) -> None:
    result = run(DEVICE, "--attncheck-device=cuda:99")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*--attncheck-device: cuda:99 is not there; this machine has*"])


def test_auto_takes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(pytest.UsageError, match="cuda:2 is not there; this machine has cpu, cuda"):
        resolve_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    for word in ("cuda", "mps", "xpu"):
        with pytest.raises(pytest.UsageError, match=f"{word} is not there; this machine has cpu"):
            resolve_device(word)
