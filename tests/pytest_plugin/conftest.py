"""A nested pytest with the plugin, 80 columns wide."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import entry_points

import pytest
from _pytest.pytester import SysModulesSnapshot

INSTALLED = any(point.name == "attncheck" for point in entry_points(group="pytest11"))
XDIST = ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID")

Run = Callable[..., pytest.RunResult]


@pytest.fixture(autouse=True)
def _modules_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Let a nested run drop the modules of its own folder only.

    By default it drops whatever it was the first to import: the next run then has a second copy of
    the package, whose classes are not those that the plugin of this process holds, and compiled
    modules refuse to be loaded twice.
    """
    restore = SysModulesSnapshot.restore
    temporary = str(tmp_path_factory.getbasetemp())

    def keep(self: SysModulesSnapshot) -> None:
        kept = {
            name: module
            for name, module in sys.modules.items()
            if not str(getattr(module, "__file__", None) or temporary).startswith(temporary)
        }
        restore(self)
        for name, module in kept.items():
            sys.modules.setdefault(name, module)

    monkeypatch.setattr(SysModulesSnapshot, "restore", keep)


@pytest.fixture
def plugin_args() -> list[str]:
    """What loads the plugin: nothing where its entry point is installed."""
    loaded = [] if INSTALLED else ["-p", "attncheck.pytest_plugin"]
    return [*loaded, "-p", "no:cacheprovider", "-p", "no:benchmark"]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, plugin_args: list[str]) -> Run:
    """Run a test file, given as source, with some arguments.

    The nested run knows nothing of the outer one: not that it is a worker of pytest-xdist, where
    plugins such as pytest-benchmark behave otherwise.
    """
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("CI", "BUILD_NUMBER", "PYTEST_ADDOPTS", *XDIST):
        monkeypatch.delenv(name, raising=False)

    def run_source(source: str, *args: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=source)
        return pytester.runpytest_inprocess(*plugin_args, *args)

    return run_source
