"""A nested pytest with the plugin, 80 columns wide."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

import pytest
import scipy.optimize  # a nested run in this process would load it a second time,
import scipy.special  # noqa: F401 - which its compiled parts refuse

INSTALLED = any(point.name == "attncheck" for point in entry_points(group="pytest11"))

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def plugin_args() -> list[str]:
    """What loads the plugin: nothing where its entry point is installed."""
    loaded = [] if INSTALLED else ["-p", "attncheck.pytest_plugin"]
    return [*loaded, "-p", "no:cacheprovider", "-p", "no:benchmark"]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, plugin_args: list[str]) -> Run:
    """Run a test file, given as source, with some arguments."""
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("CI", "BUILD_NUMBER", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)

    def run_source(source: str, *args: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=source)
        return pytester.runpytest_inprocess(*plugin_args, *args)

    return run_source
