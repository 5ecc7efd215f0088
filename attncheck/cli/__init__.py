"""The command line: `attncheck scan`, `compare`, `bench` and whatever else stands in `COMMANDS`.

Arguments are read before anything heavy is imported; that is left to the command.

Exit codes: 0 all is well, 1 something was found, 2 wrong use or a model that cannot be loaded or
captured, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from attncheck import __version__
from attncheck.cli.parsers import COMMANDS
from attncheck.cli.problem import CommandError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: Arguments without the program's name; None: those of the process.

    Raises:
        SystemExit: ``--help`` and ``--version`` (code 0), or arguments that no command takes (2).

    Example:
        >>> main(["scan", "--no-plots", "--out", "", "--text", "ab"])  # doctest: +ELLIPSIS
        model   attncheck's trained 2-layer model ...
        0
    """
    try:
        parser = _parser()
        args = parser.parse_args(argv)
        if args.command is None:
            parser.print_help(sys.stderr)
            return 2
        code: int = import_module(f"attncheck.cli.{args.command}").run(args)
        sys.stdout.flush()
    except CommandError as error:
        print(f"attncheck {args.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        behind = "\n" if sys.stderr.isatty() else ""  # the line that shows ^C
        print(f"{behind}attncheck: interrupted; files already written are whole", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (head, less) has gone: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="attncheck",
        description="See and test what attention does in a PyTorch model.",
        epilog="exit codes: 0 well, 1 something found, 2 wrong use or nothing to scan",
    )
    parser.add_argument("--version", action="version", version=f"attncheck {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for module in COMMANDS:
        module.add_parser(commands)
    return parser
