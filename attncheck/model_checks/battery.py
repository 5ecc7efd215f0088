"""The door: try every promise that applies to a model, report, raise once."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import nn

from attncheck.attention.arguments import reasons, words
from attncheck.checks.finding import Finding
from attncheck.errors import CheckFailure, UncheckedWarning
from attncheck.model_checks import promises as _promises  # noqa: F401 - fills the registry
from attncheck.model_checks.registry import PROMISES, Guess, Promise
from attncheck.model_checks.report import UNCHECKED, ModelReport, Outcome
from attncheck.model_checks.subject import ModelSubject, SubjectOptions

__all__ = ["check_model", "run_promise", "select_promises"]


def check_model(
    model: nn.Module | ModelSubject,
    inputs: Any = None,
    *,
    select: Iterable[str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    raises: bool = True,
    **options: Unpack[SubjectOptions],
) -> ModelReport:
    """Check whether a whole model keeps the promises of attention, as a black box.

    Args:
        model: Any module, or a `ModelSubject`.
        inputs: What it is called with: a tensor, a tuple, or a mapping by name. Default, for
            Hugging Face models: small random ones.
        select: Ids or tags of the promises to try; all that apply by default.
        expected_failures: Reasons by id: these must fail, and are reported apart.
        raises: Whether to raise when a promise is broken, and to warn where it could not be told
            whether the model makes one. If not, read the report.
        options: What cannot be found out from the model, see `ModelSubject`.

    Returns:
        The report; print it, or save it as JSON.

    Raises:
        CheckFailure: A promise is broken. One error lists all of them; its ``finding`` is the
            report.
        TypeError: ``select`` holds no words, or ``expected_failures`` is no mapping.
        ValueError: A word in ``select`` or ``expected_failures`` that nothing is called.

    Warns:
        UncheckedWarning: It could not be told whether the model makes a promise: pass ``kind``.

    Example:
        >>> encoder = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=8, batch_first=True)
        >>> report = check_model(encoder, torch.randn(2, 6, 8), select=["padding-invariant"])
        >>> print(report)
        TransformerEncoderLayer: 1 passed
        ...
    """
    expected = reasons(expected_failures, "expected_failures")
    unknown = sorted(set(expected) - set(PROMISES))
    if unknown:
        raise ValueError(f"expected_failures: no promise is called {', '.join(unknown)}")
    subject = ModelSubject.of(model, inputs, **options)
    report = ModelReport(subject.name, subject.describe())
    for entry in select_promises(select):
        report.outcomes.append(run_promise(entry, subject, expected))
    if raises and not report.passed:
        raise CheckFailure(str(report), report)
    for line in report.unchecked if raises else ():
        warnings.warn(line, UncheckedWarning, stacklevel=2)
    return report


def select_promises(select: Iterable[str] | None) -> list[Promise]:
    """Return the promises of some ids or tags.

    Raises:
        TypeError: They are no words.
        ValueError: A word selects nothing.
    """
    if select is None:
        return list(PROMISES.values())
    chosen = set(words(select, "select", "ids or tags of promises"))
    known = {tag for entry in PROMISES.values() for tag in entry.tags}
    if chosen - known:
        raise ValueError(f"select: nothing is called {', '.join(sorted(chosen - known))}")
    return [entry for entry in PROMISES.values() if entry.tags & chosen]


def run_promise(
    entry: Promise, subject: ModelSubject, expected: Mapping[str, str] | None = None
) -> Outcome:
    """Try one promise; what the model raises is an outcome too."""
    start = time.perf_counter()
    finding: Finding | None = None
    state = torch.random.get_rng_state()
    try:
        found = entry.applies(subject)
        guess = found if isinstance(found, Guess) else None
        note = guess.note if guess is not None else str(found)
        status = "not applicable" if note else ""
        if guess is not None:
            status = "" if guess.made else UNCHECKED
        if not status:
            finding = entry.judge(subject)
            status = "passed" if finding.passed else "failed"
            if guess is not None:
                finding = replace(finding, facts=(*finding.facts, ("kind", guess.note)))
    except Exception as error:
        status, note = "error", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    finally:
        torch.random.set_rng_state(state)
    reason = (expected or {}).get(entry.id)
    if reason is not None and status not in ("not applicable", UNCHECKED):
        status = "expected failure" if status in ("failed", "error") else "unexpected pass"
        note = reason
    return Outcome(entry.id, status, round(time.perf_counter() - start, 4), note, finding)
