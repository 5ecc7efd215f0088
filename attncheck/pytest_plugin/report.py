"""``--attncheck-report=FILE.html``: one page for the whole run.

Whoever runs a test, a worker or the only process, turns what it captured and what failed into text
at the end of the test's call, and drops the rest. The text travels with the test's report, which
pytest-xdist carries, but which JUnit files leave alone. The controller alone writes.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from attncheck.capture import AttentionExtractor
    from attncheck.report import FailureEntry, ModelEntry

__all__ = ["add_options", "attention_report", "configure", "remember"]

PROPERTY: Final = "attncheck_report"
MOST_HEADS: Final = 4096
"""Heads of one page; captures beyond are counted and left out."""


@dataclass
class Captured:
    """One capture that a test made: an extractor, attention of any form, or a profile."""

    attention: Any
    name: str
    tokens: Any = None


CAPTURED = pytest.StashKey[list[Captured]]()


class AttentionReport:
    """What the fixture `attention_report` hands out."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item

    def add(self, attention: Any, name: str = "", tokens: Any = None) -> None:
        """Put the heads of a model on the page of ``--attncheck-report``, if one is asked for.

        Args:
            attention: Attention in any form that `as_attention` takes, or a `HeadProfile`.
            name: What the page calls it. Default: the name of the test.
            tokens: Strings or ids, one per key. Default: what maps carry.
        """
        remember(self._item, attention, name, tokens)


@pytest.fixture
def attention_report(request: pytest.FixtureRequest) -> AttentionReport:
    """``attention_report.add(maps)`` puts the heads of a model on the report page.

    Models captured through `attention_extractor` stand there by themselves.
    """
    return AttentionReport(request.node)


def remember(item: pytest.Item, attention: Any, name: str = "", tokens: Any = None) -> None:
    """Keep a capture until the end of the test's call; nothing is kept without the option."""
    if item.config.getoption("--attncheck-report"):
        held = item.stash.setdefault(CAPTURED, [])
        held.append(Captured(attention, name or item.name, tokens))


def add_options(group: pytest.OptionGroup) -> None:
    """Add the option."""
    group.addoption(
        "--attncheck-report",
        metavar="FILE",
        default=None,
        help="Write one self-contained HTML page: failed attncheck assertions first, then every "
        "head that the tests captured. Default: write nothing.",
    )


def configure(config: pytest.Config) -> None:
    """Reject a place that cannot be; begin to collect."""
    given = config.getoption("--attncheck-report")
    if given is None:
        return
    path = Path(config.invocation_params.dir, given)
    if not given or path.is_dir():
        what = f"{given} is a folder" if given else "is empty"
        raise pytest.UsageError(f"--attncheck-report: {what}; expected a file such as heads.html")
    worker = hasattr(config, "workerinput")
    config.pluginmanager.register(Collector(), "attncheck-report-collector")
    if not worker:
        config.pluginmanager.register(Writer(config, path), "attncheck-report-writer")


class Collector:
    """Where tests run: describes what a test captured and why it failed."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Attach text to the report of the call; pictures are still there at this point."""
        report = yield
        found: dict[str, list[Any]] = {"failures": [], "models": []}
        if call.excinfo is not None and report.failed:
            found["failures"] = list(_failures(call.excinfo.value, item.nodeid))
        if call.when == "call":
            found["models"] = list(_models(item))
        if found["failures"] or found["models"]:
            # Of the report, not of the item: JUnit writes the item's properties.
            text = json.dumps(found, allow_nan=False, separators=(",", ":"))
            report.user_properties = [*report.user_properties, (PROPERTY, text)]
        return report


def _failures(error: BaseException, nodeid: str) -> Iterator[FailureEntry]:
    from attncheck.pytest_plugin.artifacts import failures_in
    from attncheck.report import describe_failure

    for failure in failures_in(error):
        yield describe_failure(failure.finding, nodeid, str(failure))


def _models(item: pytest.Item) -> Iterator[ModelEntry]:
    """Describe each capture; what cannot be described fails no test."""
    for captured in item.stash.get(CAPTURED, []):
        try:
            entry = _model(captured)
        except (ValueError, TypeError, RuntimeError):  # nothing captured, or no attention
            continue
        entry["tests"] = [item.nodeid]
        yield entry
    item.stash[CAPTURED] = []


def _model(captured: Captured) -> ModelEntry:
    from attncheck.attention import as_attention
    from attncheck.evaluate import profile_attention
    from attncheck.profile import HeadProfile
    from attncheck.report import describe_model, heatmaps_of

    attention = captured.attention
    if isinstance(attention, HeadProfile):
        return describe_model(captured.name, attention)
    maps = as_attention(_maps(attention), tokens=captured.tokens)
    heatmaps = {name: [one] for layer in maps.layers for name, one in heatmaps_of(layer)}
    tokens = maps.tokens[0] if maps.tokens else None
    return describe_model(captured.name, profile_attention(maps), heatmaps, tokens=tokens)


def _maps(attention: AttentionExtractor | Any) -> Any:
    return attention.maps if hasattr(attention, "clear_hooks") else attention


@dataclass
class Writer:
    """The controller: gathers what all reports bring, writes the page at the end."""

    config: pytest.Config
    path: Path
    failures: list[FailureEntry] = field(default_factory=list)
    models: dict[str, ModelEntry] = field(default_factory=dict)
    tests: set[str] = field(default_factory=set)
    heads: int = 0
    left_out: int = 0
    said: str = ""
    bad: bool = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take what a test's report brings."""
        self.tests.add(report.nodeid)
        for name, text in report.user_properties:
            if name == PROPERTY:
                found = json.loads(str(text))
                self.failures += found["failures"]
                for model in found["models"]:
                    self._take(model)
        kept = [pair for pair in report.user_properties if pair[0] != PROPERTY]
        report.user_properties = kept

    def _take(self, model: ModelEntry) -> None:
        """Keep a capture once, whichever tests made it."""
        tests, model["tests"] = model["tests"], []
        key = json.dumps(model, sort_keys=True)
        if key not in self.models:
            if self.heads + len(model["heads"]) > MOST_HEADS:
                self.left_out += 1
                return
            self.heads += len(model["heads"])
            self.models[key] = model
        held = self.models[key]["tests"]
        held += [test for test in tests if test not in held]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Write the page; a disk that refuses spoils no run."""
        from attncheck.report import write_page

        for model in self.models.values():
            model["tests"].sort()
            self._mark(model)
        try:
            write_page(self._report(), self.path)
        except OSError as error:
            self.said, self.bad = f"not written: {self.path}: {error.strerror}", True
        else:
            count = len(self.failures)
            self.said = (
                f"{count} failure{'s' * (count != 1)}, {self.heads} head{'s' * (self.heads != 1)}: "
                f"{self._shown()}"
            )

    def _mark(self, model: ModelEntry) -> None:
        """Mark the heads that a failure of one of the same tests names."""
        names = {
            name
            for failure in self.failures
            if failure["where"] in model["tests"]
            for name in failure["heads"]
        }
        for head in model["heads"]:
            head["failed"] = head["name"] in names

    def _report(self) -> Any:
        from importlib.metadata import version

        from attncheck import __version__
        from attncheck.report import Report

        notes = []
        if self.left_out:
            notes.append(
                f"{self.left_out} more captures are left out: a page holds {MOST_HEADS} heads"
            )
        models = sorted(
            self.models.values(),
            key=lambda model: (not any(h["failed"] for h in model["heads"]), model["tests"]),
        )
        facts = [
            ("tests run", str(len(self.tests))),
            ("attncheck", __version__),
            ("torch", version("torch")),
            ("pytest", pytest.__version__),
        ]
        failures = sorted(self.failures, key=lambda failure: failure["where"])
        return Report("attncheck test report", facts, models, failures, notes)

    def _shown(self) -> str:
        start = self.config.invocation_params.dir
        inside = self.path.is_relative_to(start)
        return str(self.path.relative_to(start) if inside else self.path)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say where the page is, in one line."""
        if self.said:
            terminalreporter.write_line(f"attncheck report: {self.said}", red=self.bad)
