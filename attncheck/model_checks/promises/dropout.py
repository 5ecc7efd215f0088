"""Nothing is left to chance in eval mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Any, Final, Unpack

from torch import Tensor, nn

from attncheck.checks.door import raise_if_failed
from attncheck.checks.finding import Finding
from attncheck.model_checks.conclude import Words, conclude
from attncheck.model_checks.noise import distance, noise_of
from attncheck.model_checks.registry import register
from attncheck.model_checks.running import call, output
from attncheck.model_checks.subject import ModelSubject, SubjectOptions
from attncheck.model_checks.trial import Replay, Trial

__all__ = ["assert_dropout_off_in_eval", "judge_dropout"]

RAISED: Final = 0.3
"""Every dropout rate is raised to this for the trial: in eval mode it must not matter."""

WORDS: Final = Words(
    check="dropout_off_in_eval",
    broken="chance decides in eval mode",
    holds="nothing is left to chance",
    rule="model.eval()(x) does not depend on the random state",
    column="mass moved",
    hint="pass training=self.training to F.dropout, and dropout_p=0.0 in eval mode",
)


def assert_dropout_off_in_eval(
    model: nn.Module | ModelSubject, inputs: Any = None, **options: Unpack[SubjectOptions]
) -> None:
    """Assert that the output of a model in eval mode does not depend on the random state.

    The model is called under different seeds. For the length of the check every dropout rate that
    its modules hold is raised, since a rate of 0 in this configuration would hide the mistake.

    Args:
        model: Any module, or a `ModelSubject`.
        inputs: What it is called with. Default, for Hugging Face models: small random ones.
        options: What cannot be found out from the model, see `ModelSubject`.

    Raises:
        CheckFailure: Chance changes the output.

    Example:
        >>> import torch
        >>> assert_dropout_off_in_eval(nn.Dropout(0.1), torch.randn(2, 6, 8))
    """
    __tracebackhide__ = True
    raise_if_failed(judge_dropout(ModelSubject.of(model, inputs, **options)))


@register(
    "dropout-off-in-eval",
    reason="dropout that stays on makes every evaluation wrong, a little",
    source="torch.nn.functional.scaled_dot_product_attention: dropout_p is always applied",
    applies=lambda _: "",
    tags=("state",),
)
def judge_dropout(subject: ModelSubject) -> Finding:
    """Find chance in eval mode; arguments as `assert_dropout_off_in_eval`."""
    limit = noise_of(subject).strict
    with _dropout_raised(subject.model):
        base = output(subject, seed=0)
        found = [output(subject, seed=seed) for seed in (1, 2)]
        moved = max((distance(base, other) for other in found), key=_farthest)
        replay = Replay(
            one=lambda: call(subject, seed=0),
            two=lambda: call(subject, seed=1),
            align_one=lambda held: held,
            align_two=lambda held: held,
            subject=subject,
            extra={},
        )
        what = "called under 3 seeds, dropout rates raised"
        trial = Trial("repeated", what, moved, limit, moved.numel(), replay=replay)
        return conclude(subject, WORDS, [trial], None)


def _farthest(moved: Tensor) -> float:
    return float(moved.nan_to_num(inf, posinf=inf).max())


@contextmanager
def _dropout_raised(model: nn.Module) -> Iterator[None]:
    """Raise every dropout rate that a module holds as a number, and put it back."""
    held: list[tuple[nn.Module, str, Any]] = []
    for module in model.modules():
        for name, value in vars(module).items():
            rate = "drop" in name.lower() or (name == "p" and _is_dropout(module))
            if rate and isinstance(value, float) and 0 <= value < RAISED:
                held.append((module, name, value))
    try:
        for module, name, _ in held:
            setattr(module, name, RAISED)
        yield
    finally:
        for module, name, value in held:
            setattr(module, name, value)


def _is_dropout(module: nn.Module) -> bool:
    return "dropout" in type(module).__name__.lower()
