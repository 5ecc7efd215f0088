"""The arguments of `attncheck scan`."""

from __future__ import annotations

from typing import Any, Final

from attncheck.cli.arguments import add_command, add_prompt

__all__ = ["DEFAULT_FOLDER", "KINDS", "add_parser"]

DEFAULT_FOLDER: Final = "attncheck-scan"

KINDS: Final = ("decoder", "encoder", "encoder-decoder", "vision", "set")
"""Of `attncheck.model_checks.subject.Kind`, those that can be promised."""

DESCRIPTION: Final = """\
Run a model on one prompt, measure and name every attention head, and draw them.

A pattern's mass is the share of attention on its keys, chance is what uniform
attention would put there, lift is (mass - chance) / (1 - chance). The pattern
uniform is measured the other way round: mass is the share that it has in common
with even attention, chance what a head on a single key would have. Entropy is
normalised: 1 is uniform over the visible keys; it has no chance level. Sink is
the mass on the first visible key. Margin is the lead over the next pattern of
another kind."""

EPILOG: Final = """\
examples:
  attncheck scan                                  the shipped trained model
  attncheck scan --text "abcabcabc"               on a prompt of your own
  attncheck scan gpt2 --text "Mary and John"      a Hugging Face model (attncheck[hf])
  attncheck scan ./checkpoint --layers 0 5 -1     some layers of a local one
  attncheck scan mylib.models:make --tokens "5 8" a factory: () -> model or (model, inputs)

  attncheck scan gpt2 --check                     does the whole model keep its promises?

exit codes: 0 attention is valid, 1 it is not, 2 nothing could be scanned"""


def add_parser(commands: Any) -> None:
    """Add ``scan`` to the commands."""
    parser = add_command(
        commands,
        "scan",
        about="name, measure and draw every head of a model",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="Hugging Face name or folder, or package.module:factory (default: the shipped model)",
    )
    add_prompt(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="where pictures and profile.json go, in place of those of an earlier scan (default: "
        f"{DEFAULT_FOLDER}; with --json, or as an empty word: nowhere)",
    )
    parser.add_argument(
        "--report",
        metavar="FILE",
        help="write one self-contained HTML page with every head (default: none)",
    )
    parser.add_argument("--no-plots", action="store_true", help="write no pictures")
    parser.add_argument("--all", action="store_true", help="list every head of a large model")
    parser.add_argument("--json", action="store_true", help="print JSON on standard output")
    parser.add_argument(
        "--check",
        action="store_true",
        help="try what the whole model promises (no future, padding, cache, ...) instead of "
        "naming its heads; writes no files",
    )
    parser.add_argument(
        "--kind",
        choices=KINDS,
        help="with --check: what the model promises (default: found out for Hugging Face models)",
    )
