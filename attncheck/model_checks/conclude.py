"""From trials to a finding: the verdict, the noise floor, the layer that parts, its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Final

from attncheck.checks.finding import Evidence, Finding, Offender
from attncheck.checks.text import VERDICT, number
from attncheck.model_checks.blame import first_departure
from attncheck.model_checks.evidence import COLUMNS, guilty_heads
from attncheck.model_checks.finite import unfinite_trial
from attncheck.model_checks.noise import NoiseFloor, noise_of
from attncheck.model_checks.subject import ModelSubject
from attncheck.model_checks.trial import Trial

__all__ = ["Words", "conclude"]

CAREFUL: Final = 14
"""Rounds of noise measured before an alarm is raised."""


@dataclass(frozen=True)
class Words:
    """How a promise speaks.

    Attributes:
        check: Its id with underscores.
        broken: The verdict: ``"sees the future"``.
        holds: What it says when it holds: ``"sees no future"``.
        rule: What was demanded, in code.
        hint: What to look at.
        column: What the first column of the table of heads is.
    """

    check: str
    broken: str
    holds: str
    rule: str
    hint: str
    column: str = COLUMNS[0]


def conclude(
    subject: ModelSubject,
    words: Words,
    trials: Sequence[Trial],
    noise: NoiseFloor | None,
    notes: Sequence[tuple[str, str]] = (),
) -> Finding:
    """Judge trials and look into the worst of them.

    Args:
        subject: The model and its inputs.
        words: How the promise speaks.
        trials: What was tried; empty only where ``notes`` say why.
        noise: The model's noise floor, where it was measured.
        notes: Further facts.
    """
    if noise is not None and any(trial.failed and trial.limit for trial in trials):
        # Routers and other steps flip under a rounding now and then: look harder before an alarm.
        noise = noise_of(subject, rounds=CAREFUL)
        trials = [replace(t, limit=max(t.limit, noise.limit)) if t.limit else t for t in trials]
    failed = [trial for trial in trials if trial.failed]
    if failed and not any(trial.exceeds for trial in failed):
        return unfinite_trial(subject, words.check, failed[0])
    judged = max((trial.judged for trial in trials), default=0)
    facts = [_fact(trial) for trial in _one_per_method(failed or list(trials))]
    if noise is not None:
        facts.append(("noise", f"{noise}; limit {noise.limit:.2g}"))
    facts += notes
    if not failed:
        verdict = f"{words.holds}: {len(trials)} trial{'s' * (len(trials) != 1)}"
        return _finding(subject, words, verdict, facts, judged, judged)
    known = [trial for trial in failed if trial.exceeds]
    worst = max(known, key=lambda trial: (trial.limit > 0, _severity(trial)))
    shown = [t for t in known if t.replay is not None]
    replay = max(shown, key=_severity).replay if shown else None
    layer: str | None = None
    offenders: list[Offender] = []
    evidence: Evidence | None = None
    if replay is not None:
        scale = 1.0 if noise is None else noise.scale or 1.0
        layer = first_departure(subject.model, replay, worst.limit / scale)
        facts.append(("layer", f"{layer} parts first" if layer else "no module's output parts"))
        offenders, evidence = guilty_heads(subject.model, replay, layer)
    finding = _finding(
        subject, words, _verdict(words, worst), facts, worst.judged - worst.n_failed, worst.judged
    )
    return Finding(
        **{
            **vars(finding),
            "passed": False,
            "columns": (words.column, *COLUMNS[1:]) if offenders else (),
            "offenders": tuple(offenders),
            "hints": (words.hint,),
            "evidence": evidence,
        }
    )


def _finding(
    subject: ModelSubject,
    words: Words,
    verdict: str,
    facts: list[tuple[str, str]],
    passed: int,
    total: int,
) -> Finding:
    return Finding(
        check=words.check,
        passed=True,
        verdict=verdict,
        name=subject.name,
        subject=subject.describe(),
        rule=words.rule,
        facts=tuple(facts),
        n_passed=max(passed, 0),
        n_total=total,
        unit="positions",
    )


def _verdict(words: Words, worst: Trial) -> str:
    counted = f"{words.broken}: {worst.n_failed} of {worst.judged} positions"
    return counted if len(counted) <= VERDICT else words.broken


def _one_per_method(trials: list[Trial]) -> list[Trial]:
    """The worst trial of each method."""
    best: dict[str, Trial] = {}
    for trial in trials:
        if trial.method not in best or _severity(trial) > _severity(best[trial.method]):
            best[trial.method] = trial
    return list(best.values())


def _severity(trial: Trial) -> float:
    moved = float(trial.moved.nan_to_num(0.0, posinf=inf).max()) if trial.moved.numel() else 0.0
    return moved / trial.limit if trial.limit else (inf if moved else 0.0)


def _fact(trial: Trial) -> tuple[str, str]:
    size, row, position = trial.worst
    text = trial.what
    if trial.failed:
        allowed = f"{number(trial.limit)} allowed" if trial.limit else "exactly 0 expected"
        where = f"{trial.axis} {position} of sequence {row}"
        told = f"{number(size)} at {where} ({allowed})" if trial.exceeds else f"NaN at {where}"
        text = f"{told}: {trial.what}"
    elif trial.limit:
        text = f"at most {number(size)}: {trial.what}"
    else:
        text = f"exactly 0: {trial.what}"
    return trial.method, text
