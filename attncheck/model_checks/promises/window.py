"""Information flows no further than windows allow."""

from __future__ import annotations

import re
from typing import Any, Final, Unpack

import torch
from torch import Tensor, nn

from attncheck.attention import LayerAttention
from attncheck.checks.door import raise_if_failed
from attncheck.checks.finding import Finding
from attncheck.errors import CaptureError
from attncheck.model_checks.altering import other_content
from attncheck.model_checks.captured import attention_of
from attncheck.model_checks.conclude import Words, conclude
from attncheck.model_checks.huggingface import layer_windows
from attncheck.model_checks.noise import distance, noise_of
from attncheck.model_checks.registry import register
from attncheck.model_checks.running import call, input_gradient, output
from attncheck.model_checks.subject import ModelSubject, SubjectOptions
from attncheck.model_checks.trial import Replay, Trial

__all__ = ["assert_window_respected", "judge_window"]

WORDS: Final = Words(
    check="window_respected",
    broken="the window is not as said",
    holds="the window is respected",
    rule="a layer's query sees its last `window` keys; the output as many layers further",
    hint="check the bound of the window: a query sees itself and window - 1 keys before it",
    column="mass beyond",
)


def assert_window_respected(
    model: nn.Module | ModelSubject, inputs: Any = None, **options: Unpack[SubjectOptions]
) -> None:
    """Assert that a causal model with sliding windows sees as far back as it says, and no further.

    A query of every layer sees ``window`` keys: itself and those before it. Through ``depth``
    layers information travels ``depth * (window - 1)`` positions: the output must not depend on
    what lies further back (perturbation, and a gradient of exactly 0), and must reach that far.
    The maps of each sliding layer are judged too, also beside layers that see everything.

    Args:
        model: Any module, or a `ModelSubject`.
        inputs: What it is called with, longer than the window. Default, for Hugging Face models:
            small random ones.
        options: What cannot be found out from the model, see `ModelSubject`; ``window`` where the
            configuration does not say it.

    Raises:
        CheckFailure: Information flows further, or less far.
        ValueError: No window is known, or the inputs never leave it.

    Example:
        >>> assert_window_respected(nn.Linear(4, 4), torch.randn(2, 6, 4))
        Traceback (most recent call last):
        ValueError: window: no layer has one; ...
    """
    __tracebackhide__ = True
    subject = ModelSubject.of(model, inputs, **options)
    reason = _applies(subject)
    if reason:
        raise ValueError(f"window: {reason}; pass window=, and inputs that are longer")
    raise_if_failed(judge_window(subject))


def _windows(subject: ModelSubject) -> list[int | None]:
    if subject.window is not None:
        return [subject.window] * max(len(_attention(subject)), 1)
    return layer_windows(subject.model) if subject.huggingface else []


def _applies(subject: ModelSubject) -> str:
    known = [window for window in _windows(subject) if window is not None]
    if not known:
        return "no layer has one"
    if not subject.is_sequence or subject.kind in ("encoder", "vision", "set"):
        return "only causal windows are judged"
    if subject.length <= min(known):
        return f"{subject.length} positions never leave a window of {min(known)}"
    return ""


@register(
    "window-respected",
    reason="a window off by one differs from the model that was trained",
    source="Beltagy et al. 2020, Longformer, sec. 3.1; transformers issue 35924",
    applies=_applies,
    tags=("mask", "window"),
)
def judge_window(subject: ModelSubject) -> Finding:
    """Find flow beyond windows; arguments as `assert_window_respected`."""
    windows = _windows(subject)
    trials: list[Trial] = []
    notes: list[tuple[str, str]] = []
    layers = _attention(subject)
    for layer in layers:
        trials += _seen(layer, _window_of(layer, layers, windows))
    if None not in windows and len(set(windows)) == 1:
        reach = len(windows) * ((windows[0] or 1) - 1)
        if subject.length > reach + 1:
            found, note = _flow(subject, reach, windows[0] or 1)
            trials += found
            notes += note
        else:
            notes.append(("flow", f"{subject.length} positions never leave a reach of {reach}"))
    return conclude(subject, WORDS, trials, noise_of(subject), notes)


def _attention(subject: ModelSubject) -> list[LayerAttention]:
    try:
        return [layer for layer in attention_of(subject) if layer.kind != "cross"]
    except CaptureError:
        return []


def _window_of(
    layer: LayerAttention, layers: list[LayerAttention], windows: list[int | None]
) -> int | None:
    """The window of a captured layer: by the number in its path, or by its place."""
    numbers = re.findall(r"\.(\d+)\.", f".{layer.name}.")
    place = int(numbers[-1]) if numbers else layers.index(layer)
    return windows[place] if place < len(windows) else None


def _seen(layer: LayerAttention, window: int | None) -> list[Trial]:
    """Judge the map of one layer: mass beyond the window, by query."""
    if window is None or layer.n_key <= window:
        return []
    cells = beyond(layer, window)
    mass = layer.weights.float().nan_to_num(0).masked_fill(~cells, 0).sum(-1).amax(1)
    what = f"weights of {layer.name} beyond {window} keys"
    return [Trial("maps", what, mass, 0.0, mass.numel(), axis="query")]


def beyond(layer: LayerAttention, window: int) -> Tensor:
    """Cells that lie further back than a window: bool ``(1, 1, query, key)``."""
    keys = torch.arange(layer.n_key, device=layer.weights.device)
    return (keys <= layer.query_positions()[:, None] - window)[None, None]


def _flow(
    subject: ModelSubject, reach: int, window: int
) -> tuple[list[Trial], list[tuple[str, str]]]:
    """Judge what the output depends on, by perturbation and by gradient."""
    cut = max((subject.length - reach) // 2, 1)
    first = cut + reach
    where = (torch.arange(subject.length) < cut).expand(subject.batch, -1)
    changed = other_content(subject, subject.stream, where)
    moved = distance(output(subject), output(changed))[:, first:]

    def part(held: Tensor) -> Tensor | None:
        fits = held.ndim > 2 and tuple(held.shape[:2]) == (subject.batch, subject.length)
        return held[:, first:] if fits else None

    replay = Replay(
        one=lambda: call(subject),
        two=lambda: call(changed),
        align_one=part,
        align_two=part,
        subject=subject,
        extra={},
        forbidden=lambda layer: None if layer.kind == "cross" else beyond(layer, window),
    )
    limit, size = noise_of(subject).limit, moved.numel()
    what = f"tokens before {cut} replaced, {reach} positions and more away"
    trials = [Trial("perturbed", what, moved, limit, size, offset=first, replay=replay)]
    kept = torch.zeros(subject.batch, subject.length, dtype=torch.bool)
    kept[:, first] = True
    found = input_gradient(subject, subject.stream, kept)
    if isinstance(found, str):
        return trials, [("gradient", found)]
    what = f"of output {first} on tokens before {cut}"
    trials.append(Trial("gradient", what, found[:, :cut], 0.0, cut * subject.batch, axis="input"))
    there = found[:, cut : cut + 1]
    unreached = (there == 0).float().masked_fill(there.isnan(), torch.nan)
    what = f"gradient of output {first} on token {cut}, {reach} positions away, must not be 0"
    trials.append(Trial("reach", what, unreached, 0.0, subject.batch, offset=cut, axis="input"))
    return trials, []
