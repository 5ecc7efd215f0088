"""Options and ini settings of the plugin, read and checked once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from attncheck.pytest_plugin import benchmark, profiles, report, update
from attncheck.pytest_plugin.tracebacks import Tracebacks

__all__ = [
    "artifacts_folder",
    "device_word",
    "max_artifacts",
    "pytest_addoption",
    "pytest_configure",
    "pytest_report_header",
]

DEVICE: Final = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d+)?")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add everything under one prefix and in one group."""
    group = parser.getgroup("attncheck", "attention")
    group.addoption(
        "--attncheck-device",
        metavar="DEVICE",
        default=None,
        help="Device of the fixtures: cpu, cuda, cuda:1, mps, xpu, or auto for the first "
        "accelerator there is. Default: the ini setting attncheck_device, else cpu.",
    )
    group.addoption(
        "--attncheck-artifacts",
        metavar="DIR",
        default=None,
        help="For each failed attncheck assertion write the worst head to DIR: finding.json, "
        "attn.npz and a picture. Default: write nothing.",
    )
    parser.addini("attncheck_device", "Device of the fixtures (default: cpu).", default="cpu")
    parser.addini(
        "attncheck_max_artifacts",
        "How many failed tests of one process may write artifacts (default: 20).",
        default="20",
    )
    update.add_options(parser, group)
    report.add_options(group)
    profiles.add_options(group)


def pytest_configure(config: pytest.Config) -> None:
    """Reject wrong settings at once; make the folder absolute, so that workers share it."""
    word = device_word(config)
    if not DEVICE.fullmatch(word):
        raise pytest.UsageError(
            f"--attncheck-device: unknown device {word!r}; expected cpu, cuda, cuda:1, mps, xpu "
            "or auto"
        )
    max_artifacts(config)
    update.configure(config)
    report.configure(config)
    profiles.configure(config)
    benchmark.register(config)
    config.pluginmanager.register(Tracebacks(), "attncheck-tracebacks")
    folder = artifacts_folder(config)
    if folder is not None:
        if folder.exists() and not folder.is_dir():
            raise pytest.UsageError(f"--attncheck-artifacts: {folder} is a file, not a folder")
        config.option.attncheck_artifacts = str(folder)


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say the settings, with ``-v`` only."""
    if config.get_verbosity() < 1:
        return None
    from attncheck import __version__

    folder = artifacts_folder(config)
    return f"attncheck: {__version__}, device {device_word(config)}, artifacts {folder or 'off'}"


def device_word(config: pytest.Config) -> str:
    """Return what the user asked for, which need not be there."""
    given = config.getoption("--attncheck-device") or config.getini("attncheck_device")
    return str(given).strip()


def artifacts_folder(config: pytest.Config) -> Path | None:
    """Return where to write artifacts, None if nobody asked for them."""
    given = config.getoption("--attncheck-artifacts")
    return Path(config.invocation_params.dir, given) if given else None


def max_artifacts(config: pytest.Config) -> int:
    """Return how many failed tests may write artifacts."""
    given = str(config.getini("attncheck_max_artifacts"))
    if not given.isdecimal():
        raise pytest.UsageError(f"attncheck_max_artifacts: got {given!r}; expected a whole number")
    return int(given)
