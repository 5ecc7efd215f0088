"""Baselines that no test uses any more, and the summary of a run.

Judged is a test file that ran whole: all its tests, to their end. Of a partial run nothing is said.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from attncheck.pytest_plugin.update import KEY, stale_setting

__all__ = ["StaleBaselines"]

FOLDER: Final = "__heads__"
MOST_LINES: Final = 20


class StaleBaselines:
    """What a run collected, used, wrote and left; lives in the one process that sees all of it.

    Args:
        config: Of the run.
        update: Words of ``--attncheck-update``.
    """

    def __init__(self, config: pytest.Config, update: frozenset[str]) -> None:
        self.config, self.update = config, update
        self.start = config.invocation_params.dir
        self.collected: dict[str, list[str]] = {}
        self.partial: set[str] = set()
        self.outcomes: dict[str, str] = {}
        self.used: set[str] = set()
        self.written: dict[str, str] = {}
        self.drifted: dict[str, list[str]] = {}
        self.stale: list[Path] = []
        self.removed: list[Path] = []
        self._before: list[pytest.Item] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note what there is, before other plugins take some of it away."""
        self._before = list(items)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note which tests of which files are to run, and which files are not whole."""
        for item in session.items:
            self.collected.setdefault(str(item.path), []).append(item.nodeid)
        kept = {item.nodeid for item in session.items}
        self.partial = {str(item.path) for item in self._before if item.nodeid not in kept}
        self._before = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect outcomes and notes; over xdist they come with the reports."""
        if report.when == "call" or report.outcome != "passed":
            xfailed = hasattr(report, "wasxfail")
            self.outcomes[report.nodeid] = "skipped" if xfailed else report.outcome
        notes: dict[str, list[Any]] = getattr(report, KEY, {})
        self.used.update(notes.get("used", ()))
        for why, path in notes.get("written", ()):
            self.written[path] = why
        if "drift" in notes:
            self.drifted[report.nodeid] = notes["drift"]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take over what a worker of pytest-xdist collected."""
        seen = getattr(node, "workeroutput", {}).get(KEY)
        if seen is not None:
            self.collected.update(seen["collected"])
            self.partial.update(seen["partial"])

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Hand over to the controller, or judge."""
        if hasattr(self.config, "workeroutput"):
            seen = {"collected": self.collected, "partial": sorted(self.partial)}
            self.config.workeroutput[KEY] = seen
            return
        setting = stale_setting(self.config)
        if setting == "ignore" and "all" not in self.update:
            return
        self.stale = sorted(self._find())
        if self.stale and "all" in self.update:
            self._remove()
        elif self.stale and setting == "error" and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what was written, removed, stale and drifted; nothing if there is nothing to say."""
        blocks = [*self._blocks()]
        if not blocks:
            return
        terminalreporter.write_sep("-", "attncheck baselines")
        for title, lines in blocks:
            terminalreporter.write_line(title)
            for line in lines[:MOST_LINES] if self._clips(title) else lines:
                terminalreporter.write_line(f"  {line}")
            if self._clips(title) and lines[MOST_LINES:]:
                terminalreporter.write_line(f"  +{len(lines) - MOST_LINES} more")

    def _clips(self, title: str) -> bool:
        """Every file written or removed is listed; the rest may be cut."""
        return not title.endswith(("written", "removed"))

    def _blocks(self) -> Iterator[tuple[str, list[str]]]:
        if self.written:
            lines = [f"{why:<9} {self._show(p)}" for p, why in sorted(self.written.items())]
            yield f"{_count(len(lines), 'baseline file')} written", lines
        if self.removed:
            lines = [self._show(path) for path in self.removed]
            yield f"{_count(len(lines), 'stale baseline')} removed", lines
        left = [path for path in self.stale if path not in self.removed]
        if left:
            lines = [self._show(path) for path in left]
            lines.append("remove them with --attncheck-update, or by hand")
            yield f"{_count(len(left), 'stale baseline')}: no test uses what is in", lines
        if self.drifted:
            lines = [f"{node}: {text}" for node, held in self.drifted.items() for text in held]
            yield f"{_count(len(lines), 'check')} passed with drift within what is allowed", lines

    def _show(self, path: Path | str) -> str:
        try:
            return Path(os.path.relpath(path, self.start)).as_posix()
        except ValueError:
            return str(path)

    def _find(self) -> Iterator[Path]:
        """Find what no test uses."""
        option = self.config.option
        if getattr(option, "collectonly", False) or getattr(option, "lf", False):
            return
        asked = [self._argument(text) for text in self.config.args]
        for file, nodes in self.collected.items():
            path = Path(file)
            folder = path.parent / FOLDER / path.stem
            if folder.is_dir() and self._whole(file, nodes, asked):
                yield from self._unused(folder, nodes)
        if not self.partial:
            yield from self._of_files_gone(asked)

    def _argument(self, text: str) -> tuple[Path, bool]:
        """A path of the command line, and whether it chooses single tests."""
        path, _, node = text.partition("::")
        return Path(os.path.abspath(self.start / path)), bool(node)

    def _whole(self, file: str, nodes: Sequence[str], asked: list[tuple[Path, bool]]) -> bool:
        """Whether every test of a file was asked for and ran to its end."""
        single = any(node and path == Path(file) for path, node in asked)
        ended = all(self.outcomes.get(node) in ("passed", "failed") for node in nodes)
        return not single and ended and file not in self.partial

    def _unused(self, folder: Path, nodes: Sequence[str]) -> Iterator[Path]:
        from attncheck.regression import baseline_path
        from attncheck.regression.variants import owner_of

        owners = {baseline_path(Path("x"), node.partition("::")[2]).stem: node for node in nodes}
        used = {Path(path).stem for path in self.used if Path(path).parent == folder}
        for path in sorted(folder.glob("*.json")):
            stem, _ = owner_of(path)
            owner = owners.get(stem) or owners.get(stem.rpartition(".")[0])
            failed = owner is not None and self.outcomes[owner] == "failed"
            if stem not in used and not failed and self._of_this_machine(path):
                yield path

    def _of_files_gone(self, asked: list[tuple[Path, bool]]) -> Iterator[Path]:
        """Find baselines whose test file is no more, below folders that were asked for whole."""
        for folder in sorted({Path(file).parent for file in self.collected}):
            whole = any(not node and folder.is_relative_to(path) for path, node in asked)
            heads = folder / FOLDER
            if whole and heads.is_dir():
                for own in sorted(heads.iterdir()):
                    if own.is_dir() and not (folder / f"{own.name}.py").exists():
                        yield from filter(self._of_this_machine, sorted(own.glob("*.json")))

    def _of_this_machine(self, path: Path) -> bool:
        """Whether a baseline can be read and was not recorded on a device that is not here."""
        from attncheck.errors import BaselineError
        from attncheck.pytest_plugin.options import device_word
        from attncheck.regression.variants import read_baseline

        try:
            device = read_baseline(path).environment.device.partition("-")[0]
        except BaselineError:
            return False
        return device in ("cpu", device_word(self.config).partition(":")[0])

    def _remove(self) -> None:
        from attncheck.regression.storage import weights_beside

        for path in self.stale:
            for weights in weights_beside(path):
                weights.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            self.removed.append(path)
            for folder in (path.parent, path.parent.parent):
                if not any(folder.iterdir()):
                    folder.rmdir()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
