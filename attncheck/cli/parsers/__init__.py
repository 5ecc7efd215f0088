"""The arguments of every command; nothing here imports torch, so that help is there at once."""

from __future__ import annotations

from types import ModuleType
from typing import Final

from attncheck.cli.parsers import bench, compare, scan

__all__ = ["COMMANDS"]

COMMANDS: Final[tuple[ModuleType, ...]] = (scan, compare, bench)
"""One module per command, each with ``add_parser(subparsers)``; what it is to do, ``run(args)``, is
in the module of `attncheck.cli` that has the command's name."""
