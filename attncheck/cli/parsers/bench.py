"""The arguments of `attncheck bench`."""

from __future__ import annotations

import argparse
from typing import Any, Final

from attncheck.cli.arguments import add_command, positive

__all__ = ["ROUNDS", "add_parser"]

ROUNDS: Final = 5

DESCRIPTION: Final = """\
Time and memory of each way of getting at a model's attention, against the length
of its input: the plain forward, output_attentions in the eager backend (models
of transformers), captured maps, and the profile, which holds no map. The ways
take turns; times are medians, ratios are taken within a round. Memory is the
allocator's peak beyond what was held, in an untimed call. "of peak" is the plain
forward's operations by the time of the way, as a share of what a large matrix
product reaches in the same run."""

EPILOG: Final = """\
examples:
  attncheck bench                                    the shipped trained model
  attncheck bench gpt2 --lengths 128 512 --plot cost.png
  attncheck bench mylib.models:make --device cuda    a factory, as for scan

The prompt of the model or factory is repeated to each length.
exit codes: 0 measured, 2 nothing could be measured, 130 interrupted (what was
done is printed)"""


def add_parser(commands: Any) -> None:
    """Add ``bench`` to the commands."""
    parser = add_command(
        commands,
        "bench",
        about="time and memory of each way of getting at the attention",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="as for scan")
    parser.add_argument(
        "--lengths",
        nargs="+",
        action=_Lengths,
        metavar="N",
        help="tokens, as 128 512 or 128,512 (default: 128 256 512 1024, or what the model takes)",
    )
    parser.add_argument(
        "--rounds", type=positive, default=ROUNDS, metavar="K", help="at least 5 (default: 5)"
    )
    parser.add_argument("--quick", action="store_true", help="the shortest two lengths only")
    parser.add_argument("--tokens", metavar="IDS", help="prompt as token ids, such as '1 2 3'")
    parser.add_argument("--device", default="cpu", help="where the model runs (default: cpu)")
    parser.add_argument("--plot", metavar="FILE", help="draw time and memory (png, svg, pdf)")
    parser.add_argument("--json", action="store_true", help="print JSON on standard output")
    parser.set_defaults(behind=None)


class _Lengths(argparse.Action):
    """Reads lengths, behind which a model may stand: ``--lengths 128 512 gpt2``."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 - of every action
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        words = list(values)
        if len(words) > 1 and namespace.model is None and not words[-1].replace(",", "").isdigit():
            namespace.behind = words.pop()
        try:
            lengths = [positive(word) for word in " ".join(words).replace(",", " ").split()]
            namespace.lengths = lengths or [positive(words[0])]
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(
                self, f"{error}; expected lengths such as 128 512 or 128,512"
            ) from None
