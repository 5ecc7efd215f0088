"""Every benchmark runs alone and quick, by the command that runs them all."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as run_all
from benchmarks import _measure, _page


class Parsed(Exception):  # noqa: N818 - no error: the end of the part that is tested
    """The command line was understood."""


@pytest.mark.parametrize("name", run_all.names())
def test_its_command_is_understood(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def until_here(*args: Any, **kwargs: Any) -> None:
        parse(*args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", until_here)
    module = importlib.import_module(f"benchmarks.{name}")
    for quick in (False, True):
        for command in run_all.commands(name, quick=quick):
            assert command[1:3] == ["-m", f"benchmarks.{name}"]
            monkeypatch.setattr(sys, "argv", command[2:])
            with pytest.raises(Parsed):
                module.main()


def test_all_run_and_failures_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def ends(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        ran.append(command[2].removeprefix("benchmarks."))
        return subprocess.CompletedProcess(command, int(ran[-1] == "monitor"))

    monkeypatch.setattr(subprocess, "run", ends)
    monkeypatch.setattr(run_all, "find_spec", lambda name: None)
    assert run_all.main([]) == 1
    shown = capsys.readouterr().out
    assert set(ran) == set(run_all.names()) - set(run_all.NEEDS)
    assert "failed: monitor\n" in shown
    assert shown.count("left out: transformers is not installed") == len(run_all.NEEDS)


def test_a_quick_run_leaves_results_and_page_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_measure, "RESULTS", tmp_path)
    monkeypatch.setattr(_page, "write", lambda: pytest.fail("the page was written"))
    monkeypatch.setattr(sys, "argv", ["it", "--quick"])
    path = _measure.write_results("it", {"found": 1})
    assert path == tmp_path / "quick" / "it.json"
    assert json.loads(path.read_text(encoding="utf-8"))["found"] == 1
