"""An error that attncheck raises on purpose shows the user's line and the message, not our source.

What a bug of ours raises stays as it is, and ``--full-trace`` shows everything.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

import pytest

__all__ = ["Tracebacks"]

OWN: Final = "attncheck"
CARRIERS: Final = ("contextlib", "torch.nn.modules.module", "torch.utils._contextlib")
"""Modules that only pass a call on, from us to a model and back."""

MARK: Final = "__tracebackhide__"
"""What pytest asks of a frame, here of the globals of its module."""

RAISE: Final = dis.opmap["RAISE_VARARGS"]


class Tracebacks:
    """Hides our frames where pytest shows an error that we raised on purpose."""

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
        if report.failed and call is not None and _is_deliberate(call.excinfo):
            with _marked():
                report.longrepr = collector.repr_failure(call.excinfo)
        return report


@contextmanager
def _marked() -> Iterator[None]:
    """Let pytest ask `_is_deliberate` about frames of our modules."""
    held = [
        vars(module)
        for name, module in list(sys.modules.items())
        if isinstance(module, ModuleType) and (name.partition(".")[0] == OWN or name in CARRIERS)
    ]
    marked = [names for names in held if MARK not in names]
    for names in marked:
        names[MARK] = _is_deliberate
    try:
        yield
    finally:
        for names in marked:
            names.pop(MARK, None)


def _is_deliberate(excinfo: Any) -> bool:
    """Whether an exception came from a ``raise`` of ours, not from what a line of ours ran into."""
    trace = None if excinfo is None else excinfo.tb
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    code, package = trace.tb_frame.f_code, trace.tb_frame.f_globals.get("__name__", "")
    return bool(package.partition(".")[0] == OWN and code.co_code[trace.tb_lasti] == RAISE)
