"""After a failed assertion: a picture under the failure, and, if asked for, files.

The exception carries the evidence, and the report of the failed test is the one place where it is
used: a property test that fails while it searches and shrinks writes once.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from attncheck.errors import CheckFailure
from attncheck.pytest_plugin.options import artifacts_folder, max_artifacts

if TYPE_CHECKING:
    from attncheck.checks.finding import Finding

__all__ = ["failures_in", "pytest_runtest_makereport"]

WRITTEN = pytest.StashKey[dict[str, int]]()
"""How many findings each node id has written in this process: a test may fail again in its teardown
or in a subtest."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the findings of a failed test show, then drop their evidence."""
    report = yield
    if call.excinfo is None:
        return report
    failures = list(failures_in(call.excinfo.value))
    if report.failed:
        findings = [failure.finding for failure in failures]
        for finding in findings:
            _show(report, finding)
        if findings:
            _write(item, report, findings)
            _attach(item, report, findings)
    for failure in failures:
        failure.finding = replace(failure.finding, evidence=None)
    return report


def failures_in(error: BaseException) -> Iterator[CheckFailure]:
    """Find the check failures with a finding of ours in an exception, or in a group of them."""
    if isinstance(error, CheckFailure):
        if _is_finding(error.finding):
            yield error
    elif isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from failures_in(inner)


def _is_finding(held: object) -> bool:
    """Whether this is one of our findings; anybody may raise `CheckFailure` with something else."""
    kind = type(held)
    return (kind.__module__, kind.__qualname__) == ("attncheck.checks.finding", "Finding")


def _show(report: pytest.TestReport, finding: Finding) -> None:
    evidence = finding.evidence
    if evidence is None:
        return
    from attncheck.pytest_plugin.picture import draw

    several = finding.offenders and finding.offenders[0].at.batch is not None
    where = f" batch {evidence.batch}" if several else ""
    report.sections.append((f"attncheck pattern {evidence.head}{where}", draw(evidence)))


def _write(item: pytest.Item, report: pytest.TestReport, findings: list[Finding]) -> None:
    """Write the files of one failed test, unless too many have."""
    folder = artifacts_folder(item.config)
    if folder is None:
        return
    written = item.config.stash.setdefault(WRITTEN, {})
    most = max_artifacts(item.config)
    if item.nodeid not in written and len(written) >= most:
        text = f"not written: attncheck_max_artifacts = {most} is reached"
        report.sections.append(("attncheck artifacts", text))
        return
    try:
        from attncheck.pytest_plugin.files import write_artifacts

        before = written.get(item.nodeid, 0)
        paths = write_artifacts(folder, item.nodeid, findings, before=before)
    except Exception as error:  # a full disk, a broken matplotlib: never the end of the run
        report.sections.append(("attncheck artifacts", f"not written: {error}"))
        return
    written[item.nodeid] = before + len(findings)
    shown = "\n".join(_relative(path, item.config.invocation_params.dir) for path in paths)
    report.sections.append(("attncheck artifacts", shown))
    if not before:
        item.user_properties.append(("attncheck_artifacts", str(paths[0].parent)))


def _attach(item: pytest.Item, report: pytest.TestReport, findings: list[Finding]) -> None:
    """Give the pictures to pytest-html, where it is in use; text only, so that it crosses xdist."""
    if not item.config.pluginmanager.hasplugin("html") or not _html_wanted(item.config):
        return
    from pytest_html import extras

    from attncheck.pytest_plugin.panels import draw_evidence

    pictures = []
    with tempfile.TemporaryDirectory() as folder:
        for finding in findings:
            if finding.evidence is not None:
                path = draw_evidence(finding.evidence, finding.verdict, Path(folder, "head.png"))
                content = base64.b64encode(path.read_bytes()).decode("ascii")
                pictures.append(extras.png(content, name=finding.evidence.head))
    report.extras = [*getattr(report, "extras", []), *pictures]  # type: ignore[attr-defined]


def _html_wanted(config: pytest.Config) -> bool:
    return bool(config.getoption("htmlpath", None))


def _relative(path: Path, start: Path) -> str:
    return str(path.relative_to(start)) if path.is_relative_to(start) else str(path)
