"""The same input gives the same output, also after other inputs."""

from __future__ import annotations

from typing import Any, Final, Unpack

import torch
from torch import nn

from attncheck.checks.door import raise_if_failed
from attncheck.checks.finding import Finding
from attncheck.model_checks.altering import other_content, shortened
from attncheck.model_checks.conclude import Words, conclude
from attncheck.model_checks.noise import distance, noise_of
from attncheck.model_checks.registry import register
from attncheck.model_checks.running import call, output
from attncheck.model_checks.subject import ModelSubject, SubjectOptions
from attncheck.model_checks.trial import Replay, Trial

__all__ = ["assert_deterministic", "judge_deterministic"]

WORDS: Final = Words(
    check="deterministic",
    broken="the same input differs",
    holds="the same input, the same output",
    rule="model(x) == model(x), whatever was called in between",
    column="mass moved",
    hint="look for state that a call leaves behind: buffers, caches, attributes of modules",
)


def assert_deterministic(
    model: nn.Module | ModelSubject, inputs: Any = None, **options: Unpack[SubjectOptions]
) -> None:
    """Assert that a model in eval mode gives the same output for the same input.

    It is called twice in a row, and again after calls on other and on shorter inputs: what a call
    leaves behind in buffers or attributes shows. The random state is the same in all calls; what
    depends on it is found by `assert_dropout_off_in_eval`.

    Args:
        model: Any module, or a `ModelSubject`.
        inputs: What it is called with. Default, for Hugging Face models: small random ones.
        options: What cannot be found out from the model, see `ModelSubject`.

    Raises:
        CheckFailure: The same call gave something else.

    Example:
        >>> assert_deterministic(nn.Linear(8, 8), torch.randn(2, 6, 8))
    """
    __tracebackhide__ = True
    raise_if_failed(judge_deterministic(ModelSubject.of(model, inputs, **options)))


@register(
    "deterministic",
    reason="a result that cannot be repeated cannot be tested",
    source="PyTorch documentation, Reproducibility",
    applies=lambda _: "",
    tags=("state",),
)
def judge_deterministic(subject: ModelSubject) -> Finding:
    """Find calls that differ from each other; arguments as `assert_deterministic`."""
    first = output(subject)
    again = output(subject)
    _disturb(subject)
    later = output(subject)
    limit = noise_of(subject).strict
    trials = []
    for what, found in (("called twice", again), ("called after other inputs", later)):
        moved = distance(first, found)
        trials.append(Trial("repeated", what, moved, limit, moved.numel(), replay=_replay(subject)))
    worst = max(trials, key=lambda trial: float(trial.moved.nan_to_num(torch.inf).max()))
    return conclude(subject, WORDS, [worst], None)


def _disturb(subject: ModelSubject) -> None:
    """Call the model on other inputs, and on shorter ones where it takes them."""
    held = subject.inputs[subject.stream.name]
    where = torch.ones(held.shape[: 2 if held.ndim > 1 else 1], dtype=torch.bool)
    call(other_content(subject, subject.stream, where))
    if subject.is_sequence and subject.source is None and subject.length > 3:
        try:
            call(shortened(subject, subject.stream, 0, subject.length // 2))
        except Exception:
            return


def _replay(subject: ModelSubject) -> Replay:
    return Replay(
        one=lambda: call(subject),
        two=lambda: call(subject),
        align_one=lambda held: held,
        align_two=lambda held: held,
        subject=subject,
        extra={},
        between=lambda: _disturb(subject),
    )
