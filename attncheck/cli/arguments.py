"""Arguments that several commands take."""

from __future__ import annotations

import argparse
from typing import Any

from attncheck.cli.problem import CommandError

__all__ = ["add_command", "add_prompt", "ids_of", "layers_of", "positive"]


def add_command(
    commands: Any, name: str, *, about: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    """Add a command, whose description and epilog are shown as they are written."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=about,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def add_prompt(parser: argparse.ArgumentParser) -> None:
    """Add what a model is called with, where, and which layers are looked at."""
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--text", help="prompt, for models with a tokenizer")
    prompt.add_argument("--tokens", metavar="IDS", help="prompt as token ids, such as '1 2 3'")
    parser.add_argument(
        "--max-tokens", type=positive, metavar="N", help="cut a longer prompt to N tokens"
    )
    parser.add_argument(
        "--layers",
        nargs="+",
        metavar="LAYER",
        help="numbers in execution order (negative: from the end) or module names (default: all)",
    )
    parser.add_argument("--device", default="cpu", help="where the model runs (default: cpu)")


def ids_of(text: str | None) -> tuple[int, ...] | None:
    """Read ``--tokens``."""
    if text is None:
        return None
    words = text.replace(",", " ").split()
    try:
        ids = tuple(int(word) for word in words)
    except ValueError:
        ids = ()
    if not ids:
        raise CommandError(f"--tokens: {text!r}; expected token ids such as '1 2 3'")
    return ids


def layers_of(names: list[str] | None) -> list[int | str] | None:
    """Read ``--layers``."""
    if names is None:
        return None
    return [int(name) if name.lstrip("-").isdigit() else name for name in names]


def positive(text: str) -> int:
    """Read a positive number."""
    number = int(text) if text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return number
