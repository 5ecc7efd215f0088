"""No output depends on a later token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Unpack

import torch
from torch import Tensor, nn

from attncheck.attention import LayerAttention
from attncheck.checks.door import raise_if_failed
from attncheck.checks.finding import Finding
from attncheck.model_checks.altering import other_content, real_positions
from attncheck.model_checks.causality import guess_causality
from attncheck.model_checks.conclude import Words, conclude
from attncheck.model_checks.noise import distance, noise_of
from attncheck.model_checks.registry import Guess, register
from attncheck.model_checks.running import call, input_gradient, output
from attncheck.model_checks.subject import ModelSubject, SubjectOptions
from attncheck.model_checks.trial import Replay, Trial

__all__ = ["assert_no_future_leakage", "judge_future"]

WORDS: Final = Words(
    check="no_future_leakage",
    broken="sees the future",
    holds="sees no future",
    rule="output[:, t] does not depend on input[:, t + 1:]",
    hint="check the causal mask of that layer, in this backend and for these arguments",
    column="future mass",
)


def assert_no_future_leakage(
    model: nn.Module | ModelSubject, inputs: Any = None, **options: Unpack[SubjectOptions]
) -> None:
    """Assert that no output of a model depends on a later input.

    Two methods. Perturbation: later tokens are replaced, earlier outputs must not move. Gradient:
    the gradient of earlier outputs must be exactly 0 on later tokens. A Hugging Face model is tried
    again with ``output_attentions=True``, which makes some models take another path.

    Args:
        model: Any module, or a `ModelSubject`.
        inputs: What it is called with: a tensor, a tuple, or a mapping by name. Default, for
            Hugging Face models: small random ones.
        options: What cannot be found out from the model, see `ModelSubject`.

    Raises:
        CheckFailure: An output depends on a later input. The message says by how much against the
            model's own noise floor, at which position, in which layer first, and shows the heads.
        ValueError: The output does not follow the positions of the input.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=8, batch_first=True)
        >>> assert_no_future_leakage(layer, torch.randn(2, 6, 8))
        Traceback (most recent call last):
        attncheck.CheckFailure: sees the future: ...
        ...
    """
    __tracebackhide__ = True
    subject = ModelSubject.of(model, inputs, **options)
    raise_if_failed(judge_future(subject))


def _applies(subject: ModelSubject) -> str | Guess:
    if not subject.causal and subject.kind != "unknown":
        return f"{subject.kind}: promises nothing about later tokens (kind='decoder' does)"
    if not subject.is_sequence:
        return "its input is no sequence"
    if subject.causal:
        return ""
    if output(subject).shape[1] != subject.length:
        return "unknown: its output does not follow the positions (kind='decoder' must)"
    return guess_causality(subject)


@register(
    "no-future-leakage",
    reason="a model that sees the token it has to predict learns nothing",
    source="Vaswani et al. 2017, sec. 3.2.3; transformers issue 48748, pull request 30652",
    applies=_applies,
    tags=("mask", "causal"),
)
def judge_future(subject: ModelSubject) -> Finding:
    """Find outputs that depend on later inputs; arguments as `assert_no_future_leakage`."""
    trials: list[Trial] = []
    notes: list[tuple[str, str]] = []
    for label, extra in variants(subject):
        base = output(subject, **extra)
        if base.shape[1] != subject.length:
            raise ValueError(
                f"output: {base.shape[1]} positions for {subject.length} inputs; pass output= that "
                "selects a tensor (batch, position, ...)"
            )
        trials += [_perturbed(subject, base, cut, label, extra) for cut in _cuts(subject.length)]
        gradient = _gradient(subject, label, extra)
        if isinstance(gradient, Trial):
            trials.append(gradient)
        else:
            notes.append(("gradient", gradient))
    return conclude(subject, WORDS, trials, noise_of(subject), notes)


def variants(subject: ModelSubject) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the ways in which a model is called: as it is, and asked for its attention."""
    yield "", {}
    if subject.huggingface and subject.accepts("output_attentions"):
        extra = {"output_attentions": True}
        try:
            output(subject, **extra)
        except Exception:
            return
        yield " with output_attentions=True", extra


def _cuts(length: int) -> list[int]:
    return sorted({max(length // 4, 1), max(length // 2, 1), max(length - 1, 1)})


def _after(subject: ModelSubject, cut: int) -> Tensor:
    real = real_positions(subject, subject.stream)
    return (torch.arange(subject.length, device=real.device) >= cut) & real


def _perturbed(
    subject: ModelSubject, base: Tensor, cut: int, label: str, extra: dict[str, Any]
) -> Trial:
    changed = other_content(subject, subject.stream, _after(subject, cut))
    moved = distance(base, output(changed, **extra))
    moved[:, cut:] = 0
    replay = Replay(
        one=lambda: call(subject, **extra),
        two=lambda: call(changed, **extra),
        align_one=lambda held: _head(held, cut, subject),
        align_two=lambda held: _head(held, cut, subject),
        subject=subject,
        extra=extra,
        forbidden=later_keys,
    )
    last = subject.length - 1
    which = f"token {last}" if cut == last else f"tokens {cut} to {last}"
    what = f"{which} replaced{label}"
    limit = noise_of(subject).limit
    return Trial("perturbed", what, moved[:, :cut], limit, cut * subject.batch, replay=replay)


def _head(held: Tensor, cut: int, subject: ModelSubject) -> Tensor | None:
    fits = held.ndim > 2 and tuple(held.shape[:2]) == (subject.batch, subject.length)
    return held[:, :cut] if fits else None


def later_keys(layer: LayerAttention) -> Tensor | None:
    """Cells of a layer that lie in the future of their query."""
    if layer.kind == "cross" or layer.n_query > layer.n_key:
        return None
    keys = torch.arange(layer.n_key, device=layer.weights.device)
    return (keys > layer.query_positions()[:, None])[None, None]


def _gradient(subject: ModelSubject, label: str, extra: dict[str, Any]) -> Trial | str:
    cut = max(subject.length // 2, 1)
    kept = torch.zeros(subject.batch, subject.length, dtype=torch.bool)
    kept[:, :cut] = True
    found = input_gradient(subject, subject.stream, kept, **extra)
    if isinstance(found, str):
        return found
    what = f"of outputs before {cut} on tokens from {cut}{label}"
    judged = (subject.length - cut) * subject.batch
    return Trial("gradient", what, found[:, cut:], 0.0, judged, offset=cut, axis="input")
