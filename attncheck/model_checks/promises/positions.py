"""Order matters where it should, and only there."""

from __future__ import annotations

from typing import Any, Final, Unpack

import torch
from torch import Tensor, nn

from attncheck.checks.door import raise_if_failed
from attncheck.checks.finding import Finding
from attncheck.checks.text import number
from attncheck.model_checks.conclude import Words, conclude
from attncheck.model_checks.finite import unfinite_trial
from attncheck.model_checks.noise import distance, noise_of
from attncheck.model_checks.registry import register
from attncheck.model_checks.running import call, output
from attncheck.model_checks.subject import ModelSubject, SubjectOptions
from attncheck.model_checks.trial import Replay, Trial

__all__ = [
    "assert_permutation_equivariant",
    "assert_position_sensitive",
    "judge_equivariant",
    "judge_sensitive",
]

EQUIVARIANT: Final = Words(
    check="permutation_equivariant",
    broken="order changes the output",
    holds="order changes nothing",
    rule="model(x[:, order]) == model(x)[:, order]",
    hint="look for positions, causal masks and convolutions: a set has no order",
    column="mass moved",
)


def assert_position_sensitive(
    model: nn.Module | ModelSubject, inputs: Any = None, **options: Unpack[SubjectOptions]
) -> None:
    """Assert that the order of a sequence makes a difference.

    The positions before the last are put in another order. If every output moves along unchanged,
    and that of the last position stays, the model has lost its positions.

    Args:
        model: Any module, or a `ModelSubject`.
        inputs: What it is called with. Default, for Hugging Face models: small random ones.
        options: What cannot be found out from the model, see `ModelSubject`.

    Raises:
        CheckFailure: Order makes no difference beyond noise.

    Example:
        >>> assert_position_sensitive(nn.Linear(4, 4), torch.randn(2, 6, 4))
        Traceback (most recent call last):
        attncheck.CheckFailure: order makes no difference
        ...
    """
    __tracebackhide__ = True
    raise_if_failed(judge_sensitive(ModelSubject.of(model, inputs, **options)))


def assert_permutation_equivariant(
    model: nn.Module | ModelSubject, inputs: Any = None, **options: Unpack[SubjectOptions]
) -> None:
    """Assert that a model treats its sequence as a set: another order in, the same order out.

    Args:
        model: Any module, or a `ModelSubject`.
        inputs: What it is called with. Default, for Hugging Face models: small random ones.
        options: What cannot be found out from the model, see `ModelSubject`.

    Raises:
        CheckFailure: An output depends on the order.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=8, batch_first=True)
        >>> assert_permutation_equivariant(layer, torch.randn(2, 6, 8))
    """
    __tracebackhide__ = True
    raise_if_failed(judge_equivariant(ModelSubject.of(model, inputs, **options)))


def _ordered(subject: ModelSubject) -> str:
    if subject.kind not in ("decoder", "encoder"):
        return f"{subject.kind}: its order is not judged"
    if not subject.is_sequence or subject.length < 4:
        return "its input is no sequence of 4 positions"
    if torch.finfo(subject.dtype).bits < 32:
        return "rounding of half precision may hide it: judge it in float32"
    return ""


@register(
    "position-sensitive",
    reason="without positions a text is a bag of words",
    source="Vaswani et al. 2017, sec. 3.5; position ids that never reach a layer",
    applies=_ordered,
    tags=("positions",),
)
def judge_sensitive(subject: ModelSubject) -> Finding:
    """Find lost positions; arguments as `assert_position_sensitive`."""
    noise = noise_of(subject)
    base = output(subject)
    order = _order(subject, keep_last=True)
    turned = output(_turned(subject, order))
    follows = base.shape[1] == subject.length
    expected = base[:, order] if follows else base
    # A causal model is asked at its last position only: earlier ones see other tokens.
    held = distance(expected, turned)
    held = held[:, -1:] if subject.causal and follows else held
    trial = Trial("perturbed", "earlier tokens in another order", held, noise.limit, held.numel())
    if bool(held.isnan().any()):
        return unfinite_trial(subject, "position_sensitive", trial)
    moved = float(held.max())
    passed = moved > noise.limit
    fact = f"output moves by {number(moved)} when earlier tokens change their order"
    return Finding(
        check="position_sensitive",
        passed=passed,
        verdict="order makes a difference" if passed else "order makes no difference",
        name=subject.name,
        subject=subject.describe(),
        rule="model(x[:, order]) != model(x)[:, order]",
        facts=(("perturbed", fact), ("noise", f"{noise}; limit {noise.limit:.2g}")),
        n_passed=int(passed),
        n_total=1,
        unit="orders",
        hints=() if passed else ("check that positions reach the embedding or the attention",),
    )


@register(
    "permutation-equivariant",
    reason="a set has no order",
    source="Lee et al. 2019, Set Transformer, property 1",
    applies=lambda subject: "" if subject.kind == "set" else "its kind is not 'set'",
    tags=("positions",),
)
def judge_equivariant(subject: ModelSubject) -> Finding:
    """Find dependence on order; arguments as `assert_permutation_equivariant`."""
    order = _order(subject, keep_last=False)
    turned = _turned(subject, order)
    base, found = output(subject), output(turned)
    follows = base.shape[1] == subject.length
    moved = distance(base[:, order] if follows else base, found)

    def reorder(held: Tensor) -> Tensor | None:
        fits = held.ndim > 2 and tuple(held.shape[:2]) == (subject.batch, subject.length)
        return held[:, order] if fits else held

    replay = Replay(
        one=lambda: call(subject),
        two=lambda: call(turned),
        align_one=reorder,
        align_two=lambda held: held,
        subject=turned,
        extra={},
        forbidden=lambda _: None,
    )
    noise = noise_of(subject)
    trial = Trial("perturbed", "another order", moved, noise.limit, moved.numel(), replay=replay)
    return conclude(subject, EQUIVARIANT, [trial], noise)


def _order(subject: ModelSubject, *, keep_last: bool) -> Tensor:
    count = subject.length - keep_last
    order = torch.randperm(count, generator=torch.Generator().manual_seed(3))
    return torch.cat([order, torch.arange(count, subject.length)]).to(subject.device)


def _turned(subject: ModelSubject, order: Tensor) -> ModelSubject:
    """Put what goes in in another order, but for positions that are given."""
    shape = (subject.batch, subject.length)
    changed = {
        name: value[:, order]
        for name, value in subject.inputs.items()
        if isinstance(value, Tensor) and value.shape[:2] == shape and "position" not in name
    }
    return subject.having(**changed)
