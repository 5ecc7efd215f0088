"""The books of `head_regression`: what was used, what is to be written, and what was."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from attncheck.regression import Staged

__all__ = ["Ledger", "add_options", "configure", "ledger_of", "max_weights_bytes", "wants_weights"]

WORDS: Final = ("new", "changed", "all")
STALE: Final = ("warn", "error", "ignore")
KEY: Final = "attncheck_heads"
"""Name of what reports and workers carry to the controller; strings and lists only."""

LEDGER = pytest.StashKey["Ledger"]()
CHECKED = pytest.StashKey["dict[Path, Staged | None]"]()
NOTES = pytest.StashKey[dict[str, list[Any]]]()


def add_options(parser: pytest.Parser, group: pytest.OptionGroup) -> None:
    """Add the options of baselines."""
    group.addoption(
        "--attncheck-update",
        metavar="WHICH",
        nargs="?",
        const="all",
        default=None,
        help="Write baselines of head_regression, for tests that pass otherwise: new (those that "
        "are missing), changed (those that fail), or all, which also rewrites what drifted and "
        "removes what is stale; several with commas. Without a word: all. Default: write nothing.",
    )
    parser.addini(
        "attncheck_stale",
        "What to do about baselines that no test uses: warn, error or ignore (default: warn). "
        "Judged where a test file ran whole.",
        default="warn",
    )
    parser.addini(
        "attncheck_baseline_weights",
        "Whether baselines keep the attention weights too (default: false).",
        type="bool",
        default=False,
    )
    parser.addini(
        "attncheck_max_weights_mb",
        "How many megabytes of weights a baseline may keep (default: 5).",
        default="5",
    )


def configure(config: pytest.Config) -> None:
    """Reject wrong settings at once; open the books."""
    given = config.getoption("--attncheck-update")
    words = frozenset(word.strip() for word in str(given).split(",")) if given else frozenset()
    unknown = sorted(words - {*WORDS})
    if unknown:
        raise pytest.UsageError(
            f"--attncheck-update: unknown {unknown[0]!r}; expected new, changed, all, or nothing. "
            "Put the option behind the paths, or write --attncheck-update=all"
        )
    stale_setting(config)
    max_weights_bytes(config)
    if "all" in words:
        words = frozenset(WORDS)
    ledger = config.stash[LEDGER] = Ledger(words)
    config.pluginmanager.register(ledger, "attncheck-ledger")
    from attncheck.pytest_plugin.stale import StaleBaselines

    config.pluginmanager.register(StaleBaselines(config, words), "attncheck-stale")


def ledger_of(config: pytest.Config) -> Ledger:
    """Return the books of this process."""
    return config.stash[LEDGER]


def stale_setting(config: pytest.Config) -> str:
    """Return what to do about stale baselines."""
    given = str(config.getini("attncheck_stale"))
    if given not in STALE:
        raise pytest.UsageError(f"attncheck_stale: got {given!r}; expected warn, error or ignore")
    return given


def wants_weights(config: pytest.Config) -> bool:
    """Return whether baselines keep the weights too."""
    return bool(config.getini("attncheck_baseline_weights"))


def max_weights_bytes(config: pytest.Config) -> int:
    """Return how large weights may be."""
    given = str(config.getini("attncheck_max_weights_mb"))
    try:
        most = float(given)
    except ValueError:
        most = -1
    if not 0 <= most < 1e6:
        raise pytest.UsageError(
            f"attncheck_max_weights_mb: got {given!r}; expected a number of megabytes"
        )
    return int(most * 1e6)


class Ledger:
    """What the tests of this process used and staged.

    Args:
        update: Words of ``--attncheck-update``; none: write nothing.
    """

    def __init__(self, update: frozenset[str]) -> None:
        self.update = update
        self._item: pytest.Item | None = None

    def current(self) -> pytest.Item:
        """Return the test that runs now."""
        if self._item is None:
            raise RuntimeError("head_regression.check: no test is running; call it inside a test")
        return self._item

    def checked(self, item: pytest.Item) -> dict[Path, Staged | None]:
        """Checks that a test has passed, by their file, and what it is to write if all is well."""
        return item.stash.setdefault(CHECKED, {})

    def use(self, item: pytest.Item, plain: Path) -> None:
        """Note that a test used the baseline of a check."""
        self._note(item, "used", str(plain))

    def drift(self, item: pytest.Item, text: str) -> None:
        """Note that heads drifted within what is allowed."""
        self._note(item, "drift", text)

    def _note(self, item: pytest.Item, kind: str, text: Any) -> None:
        notes = item.stash.setdefault(NOTES, {}).setdefault(kind, [])
        if text not in notes:
            notes.append(text)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Know which test runs."""
        self._item = item
        try:
            return (yield)
        finally:
            self._item = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Write what a test staged, if it passed; let its report carry the notes."""
        report = yield
        if call.when != "call":
            return report
        self._properties(item, call)
        staged = [one for one in self.checked(item).values() if one is not None]
        if staged and report.passed:
            self._write(item, report, staged)
        item.stash[CHECKED] = {}
        notes = item.stash.get(NOTES, None)
        if notes:
            setattr(report, KEY, {kind: list(texts) for kind, texts in notes.items()})
        item.stash[NOTES] = {}
        return report

    def _properties(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        """Tell JUnit which heads changed; on the item, whose properties the XML keeps."""
        if call.excinfo is None:
            return
        from attncheck.pytest_plugin.artifacts import failures_in

        for failure in failures_in(call.excinfo.value):
            finding = failure.finding
            if finding.check == "head_regression":
                heads = dict.fromkeys(offender.head for offender in finding.offenders)
                item.user_properties.append(("attncheck_heads_changed", ", ".join(heads)))

    def _write(self, item: pytest.Item, report: pytest.TestReport, staged: list[Staged]) -> None:
        """Write; a disk that refuses fails the test, it does not stop the run."""
        from attncheck.regression import write_staged

        for one in staged:
            try:
                for path in write_staged(one):
                    self._note(item, "written", [one.why, str(path)])
            except OSError as error:
                report.outcome = "failed"
                report.longrepr = f"attncheck: baseline {one.path} was not written: {error}"
                return
