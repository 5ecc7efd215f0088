"""An error that is no bug of ours shows the user's lines and the message, not our source.

That is one that attncheck raises on purpose, or one of the user's model, which we only called. What
a bug of ours raises stays as it is, and ``--full-trace`` shows everything.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Final

import pytest

from attncheck.pytest_plugin.whose import OWN, is_no_bug

__all__ = ["Tracebacks"]

CARRIERS: Final = (
    *("contextlib", "torch.autograd.function", "torch.nn.modules.module"),
    "torch.utils._contextlib",
)
"""Modules that only pass a call on, from us to a model and back."""

MARK: Final = "__tracebackhide__"
"""What pytest asks of a frame, here of the globals of its module."""


class Tracebacks:
    """Hides our frames where pytest shows an error that is no bug of ours."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Mark our modules while pytest writes the report; the exception stays as it is."""
        # Tests of unittest keep what they raised to themselves until then.
        if call.excinfo is None and not getattr(item, "_excinfo", None):
            return (yield)
        with _marked():
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Have the report of a module that could not be collected written again.

        Only now are all of our modules imported that its import brought in.
        """
        report = yield
        call = getattr(report, "call", None)
        if report.failed and call is not None and is_no_bug(call.excinfo):
            with _marked():
                report.longrepr = collector.repr_failure(call.excinfo)
        return report


@contextmanager
def _marked() -> Iterator[None]:
    """Let pytest ask `is_no_bug` about frames of our modules."""
    held = [
        vars(module)
        for name, module in list(sys.modules.items())
        if isinstance(module, ModuleType) and (name.partition(".")[0] == OWN or name in CARRIERS)
    ]
    marked = [names for names in held if MARK not in names]
    for names in marked:
        names[MARK] = is_no_bug
    try:
        yield
    finally:
        for names in marked:
            names.pop(MARK, None)
