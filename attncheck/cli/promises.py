"""`attncheck scan --check`: does the whole model keep attention's promises?"""

from __future__ import annotations

import argparse
import json
from typing import Any, Final, get_args

from attncheck.cli.problem import CommandError, described
from attncheck.cli.subject import Subject
from attncheck.model_checks import ModelReport, check_model
from attncheck.model_checks.subject import Kind

__all__ = ["add_promises", "checked", "printed"]

SCHEMA: Final = "attncheck.check.1"


def add_promises(parser: argparse.ArgumentParser) -> None:
    """Add ``--check`` and ``--kind``."""
    parser.add_argument(
        "--check",
        action="store_true",
        help="try what the whole model promises (no future, padding, cache, ...) instead of "
        "naming its heads; writes no files",
    )
    parser.add_argument(
        "--kind",
        choices=[kind for kind in get_args(Kind) if kind != "unknown"],
        help="with --check: what the model promises (default: found out for Hugging Face models)",
    )


def checked(subject: Subject, kind: str | None) -> ModelReport:
    """Try every promise that applies.

    Raises:
        CommandError: The model fails on this prompt, or its inputs hold no sequence.
    """
    options: dict[str, Any] = {"name": subject.name, "kind": kind or subject.kind}
    inputs = subject.kwargs or subject.args
    try:
        return check_model(subject.model, inputs, raises=False, **options)
    except (TypeError, ValueError) as error:
        raise CommandError(described(error)) from error


def printed(report: ModelReport, *, as_json: bool) -> int:
    """Print the verdict and return the exit code."""
    if as_json:
        print(json.dumps({"schema": SCHEMA, **report.to_dict()}, indent=2, allow_nan=False))
    else:
        print(report)
    return 0 if report.passed else 1
