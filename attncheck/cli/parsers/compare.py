"""The arguments of `attncheck compare`."""

from __future__ import annotations

import argparse
from typing import Any, Final

from attncheck.cli.arguments import add_command, add_prompt

__all__ = ["BACKENDS", "DTYPES", "KERNELS", "add_parser"]

DTYPES: Final = ("float64", "float32", "float16", "bfloat16")
KERNELS: Final = ("math", "flash", "efficient", "cudnn")
BACKENDS: Final = ("eager", "sdpa", *KERNELS)
"""The first two are implementations of Hugging Face models, the others kernels of torch."""

DESCRIPTION: Final = """\
Compare the heads of two models, checkpoints, saved profiles, or of one model in
two dtypes or backends, on the same inputs. A head has changed when it moved
further than a measured allowance (see --atol), drifted when it moved further
than rounding in its dtype can. "moved" is the share of its attention that lies
elsewhere (mean total variation), where both sides hold weights.

Given one folder of checkpoints, or the history that a HeadMonitor wrote in
training (.jsonl), say what every head does at each step, and what went wrong."""

EPILOG: Final = """\
examples:
  attncheck compare gpt2 ./finetuned --text "..."   two models on one prompt
  attncheck compare gpt2 --dtype-b bfloat16         one model in two dtypes
  attncheck compare gpt2 --backend-b eager          one model in two backends
  attncheck compare old.json new.json               two saved profiles
  attncheck compare a.pt b.pt --into my.models:make two state dicts, one model
  attncheck compare runs/7/ --plot when.png         a folder of checkpoints
  attncheck compare heads.jsonl --plot run.png      what a HeadMonitor wrote

exit codes: 0 no head changed, 1 some did, 2 nothing could be compared"""


def add_parser(commands: Any) -> None:
    """Add ``compare`` to the commands."""
    parser = add_command(
        commands,
        "compare",
        about="say which heads differ between two models, dtypes or checkpoints",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument(
        "a",
        nargs="?",
        metavar="A",
        help="Hugging Face name or folder, package.module:factory, saved profile (.json) or maps "
        "(.safetensors), a folder of checkpoints, or a history of training (.jsonl) "
        "(default: the shipped model)",
    )
    parser.add_argument("b", nargs="?", metavar="B", help="the same (default: A)")
    for side in "ab":
        parser.add_argument(f"--dtype-{side}", choices=DTYPES, default="", help="run it in")
        parser.add_argument(f"--backend-{side}", choices=BACKENDS, default="", help="compute it by")
    parser.add_argument(
        "--into", metavar="MODEL", help="A and B are state dicts (.safetensors, .pt) of this model"
    )
    add_prompt(parser)
    parser.add_argument(
        "--atol",
        type=_share,
        metavar="SHARE",
        help="how far a head may move before it has changed (default: measured per measure, "
        "0.015 of its attention)",
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit with 1 for heads that drifted, too"
    )
    parser.add_argument("--report", metavar="FILE", help="write one self-contained HTML page")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw a folder of checkpoints or a history (png, svg)"
    )
    parser.add_argument("--all", action="store_true", help="list every head that moved")
    parser.add_argument("--json", action="store_true", help="print JSON on standard output")


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 up")
    return value
