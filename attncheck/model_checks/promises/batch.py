"""Sequences of one batch do not know of each other."""

from __future__ import annotations

from typing import Any, Final, Unpack

import torch
from torch import Tensor, nn

from attncheck.checks.door import raise_if_failed
from attncheck.checks.finding import Finding
from attncheck.model_checks.altering import other_content, rows
from attncheck.model_checks.conclude import Words, conclude
from attncheck.model_checks.noise import distance, noise_of
from attncheck.model_checks.registry import register
from attncheck.model_checks.running import call, input_gradient, output
from attncheck.model_checks.subject import ModelSubject, SubjectOptions
from attncheck.model_checks.trial import Replay, Trial

__all__ = ["assert_batch_invariant", "judge_batch"]

WORDS: Final = Words(
    check="batch_invariant",
    broken="the batch changes the output",
    holds="the batch changes nothing",
    rule="output[i] depends on input[i] alone",
    column="mass moved",
    hint="look for statistics over the batch, and for reshapes that mix it with another axis",
)


def assert_batch_invariant(
    model: nn.Module | ModelSubject, inputs: Any = None, **options: Unpack[SubjectOptions]
) -> None:
    """Assert that each sequence of a batch comes out as it would alone.

    Three methods: the other sequences are replaced, the first must not move; it is run alone; and
    the gradient of its outputs on the other sequences must be exactly 0.

    Args:
        model: Any module, or a `ModelSubject`.
        inputs: What it is called with; a batch of one gets a second sequence. Default, for
            Hugging Face models: small random ones.
        options: What cannot be found out from the model, see `ModelSubject`.

    Raises:
        CheckFailure: A sequence depends on another.

    Example:
        >>> assert_batch_invariant(nn.LayerNorm(8), torch.randn(3, 6, 8))
        >>> assert_batch_invariant(nn.Softmax(dim=0), torch.randn(3, 6, 8))
        Traceback (most recent call last):
        attncheck.CheckFailure: the batch changes the output: 6 of 6 positions
        ...
    """
    __tracebackhide__ = True
    raise_if_failed(judge_batch(ModelSubject.of(model, inputs, **options)))


@register(
    "batch-invariant",
    reason="a sequence must come out the same whoever it is batched with",
    source="Horace He et al. 2025 on batch invariance; BatchNorm left in training mode",
    applies=lambda subject: "" if subject.batch > 1 else "a batch of one",
    tags=("batch",),
)
def judge_batch(subject: ModelSubject) -> Finding:
    """Find sequences that depend on others; arguments as `assert_batch_invariant`."""
    noise = noise_of(subject)
    base = output(subject)
    positions = base.shape[1]
    changed = _others_replaced(subject)
    alone = rows(subject, [0])
    perturbed = Trial(
        "perturbed",
        "other sequences replaced",
        distance(base[:1], output(changed)[:1]),
        noise.limit,
        positions,
        replay=_replay(subject, changed),
    )
    compared = Trial(
        "compared",
        "sequence 0 run alone",
        distance(base[:1], output(alone)),
        noise.limit,
        positions,
        replay=_replay(subject, alone),
    )
    trials, notes = [perturbed, compared], []
    kept = torch.zeros(base.shape[:2], dtype=torch.bool)
    kept[0] = True
    found = input_gradient(subject, subject.stream, kept)
    if isinstance(found, str):
        notes.append(("gradient", found))
    else:
        what = "of sequence 0 on the others"
        held = found.clone()
        held[0] = 0
        judged = held[1:].numel()
        trials.append(Trial("gradient", what, held, 0.0, judged, axis="input"))
    return conclude(subject, WORDS, trials, noise, notes)


def _others_replaced(subject: ModelSubject) -> ModelSubject:
    for stream in (subject.stream, subject.source):
        if stream is None:
            continue
        held = subject.inputs[stream.name]
        sequential = held.ndim > 1
        where = torch.ones(held.shape[: 1 + sequential], dtype=torch.bool)
        where[0] = False
        subject = other_content(subject, stream, where)
    return subject


def _replay(subject: ModelSubject, other: ModelSubject) -> Replay:
    def first(batch: int) -> Any:
        def align(held: Tensor) -> Tensor | None:
            return held[:1] if held.ndim > 1 and held.shape[0] == batch else None

        return align

    return Replay(
        one=lambda: call(subject),
        two=lambda: call(other),
        align_one=first(subject.batch),
        align_two=first(other.batch),
        subject=subject,
        extra={},
    )
