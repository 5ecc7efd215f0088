"""`attncheck scan --check`: does the whole model keep attention's promises?"""

from __future__ import annotations

import json
from typing import Any, Final

from attncheck.cli.problem import CommandError, described
from attncheck.cli.subject import Subject
from attncheck.model_checks import ModelReport, check_model

__all__ = ["checked", "printed"]

SCHEMA: Final = "attncheck.check.1"


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
