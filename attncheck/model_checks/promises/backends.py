"""All backends of one model compute the same."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Unpack

import torch
from torch import Tensor, nn

from attncheck.capture import AttentionExtractor
from attncheck.capture.backends import LayerDifference, compare_backends, unchanged_backend
from attncheck.checks.door import raise_if_failed
from attncheck.checks.finding import Finding
from attncheck.errors import CaptureError
from attncheck.model_checks.altering import padded, real_positions
from attncheck.model_checks.conclude import Words, conclude
from attncheck.model_checks.noise import TIMES, distance, jiggling, noise_of
from attncheck.model_checks.promises.future import variants
from attncheck.model_checks.registry import register
from attncheck.model_checks.running import call, output
from attncheck.model_checks.subject import ModelSubject, SubjectOptions
from attncheck.model_checks.trial import Replay, Trial

__all__ = ["assert_backends_agree", "judge_backends"]

OF_TORCH: Final = ("math", "default")
"""Backends of any module: torch's reference arithmetic, and whatever torch chooses."""

WORDS: Final = Words(
    check="backends_agree",
    broken="backends disagree",
    holds="backends agree",
    rule="every backend computes the same attention and the same output",
    hint="compare what each backend gets as mask, scale and dropout in that layer",
    column="mass moved",
)


def assert_backends_agree(
    model: nn.Module | ModelSubject, inputs: Any = None, **options: Unpack[SubjectOptions]
) -> None:
    """Assert that a model computes the same in every attention backend.

    Outputs are compared, and of Hugging Face models the attention maps of every layer too, with
    and without padding; asking for ``output_attentions`` must change nothing either. The first
    layer that departs is named.

    Args:
        model: Any module, or a `ModelSubject`.
        inputs: What it is called with. Default, for Hugging Face models: small random ones.
        options: What cannot be found out from the model, see `ModelSubject`; ``backends`` are names
            for ``set_attn_implementation``, the first is the reference (default: eager and sdpa).
            Any other module is compared under ``"math"``, torch's reference arithmetic, and
            ``"default"``, what torch chooses.

    Raises:
        CheckFailure: Two backends differ.
        ValueError: A backend that the model does not take.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=8, batch_first=True)
        >>> assert_backends_agree(layer, torch.randn(2, 6, 8))
    """
    __tracebackhide__ = True
    raise_if_failed(judge_backends(ModelSubject.of(model, inputs, **options)))


def _applies(subject: ModelSubject) -> str:
    if subject.backends is not None or not subject.huggingface:
        return ""
    model: Any = subject.model
    both = getattr(model, "_supports_sdpa", False) and hasattr(model, "set_attn_implementation")
    return "" if both else "it has one backend only"


@register(
    "backends-agree",
    reason="a mask that one backend drops stays unseen in the other",
    source="transformers issue 48748 (Doge), pull request 30652 (Llama), issue 31990",
    applies=_applies,
    tags=("backends",),
)
def judge_backends(subject: ModelSubject) -> Finding:
    """Find backends that differ; arguments as `assert_backends_agree`."""
    names = subject.backends or (("eager", "sdpa") if subject.huggingface else OF_TORCH)
    trials: list[Trial] = []
    notes: list[tuple[str, str]] = []
    for label, held in _situations(subject):
        trials += _outputs(held, names, label)
        if subject.huggingface:
            found, note = _maps(held, names, label)
            trials += found
            notes += note
    for label, extra in list(variants(subject))[1:]:
        trials.append(_asked(subject, label, extra))
    finding = conclude(subject, WORDS, trials, noise_of(subject), notes)
    return finding


def _situations(subject: ModelSubject) -> Iterator[tuple[str, ModelSubject]]:
    yield "", subject
    stream = subject.source or subject.stream
    long = subject.inputs[stream.name].ndim > 1 and subject.inputs[stream.name].shape[1] > 3
    if stream.mask is not None and subject.sequential(stream) and long:
        count = subject.inputs[stream.name].shape[1] // 4
        yield ", padded", padded(subject, stream, count, "right")


def _outputs(subject: ModelSubject, names: Sequence[str], label: str) -> list[Trial]:
    """Compare the output of each backend with that of the first."""
    reference, *others = names
    real = real_positions(subject, subject.stream) if subject.is_sequence else None
    trials = []
    with backend(subject, reference):
        base = output(subject)
    for other in others:
        with backend(subject, other):
            found = output(subject)
        moved = distance(base, found)
        if real is not None and moved.shape == real.shape:
            moved = moved.masked_fill(~real, 0)
        what = f"output in {other} against {reference}{label}"
        limit = noise_of(subject).limit
        replay = _replay(subject, reference, other, real)
        trials.append(Trial("compared", what, moved, limit, moved.numel(), replay=replay))
    return trials


def _replay(subject: ModelSubject, reference: str, other: str, real: Tensor | None) -> Replay:
    def run(name: str) -> Any:
        with backend(subject, name):
            return call(subject)

    def align(held: Tensor) -> Tensor | None:
        if real is not None and held.shape[:2] == real.shape:
            return held[real][None]
        return held if real is None or bool(real.all()) else None

    return Replay(
        one=lambda: run(reference),
        two=lambda: run(other),
        align_one=align,
        align_two=align,
        subject=subject,
        extra={},
    )


def _maps(
    subject: ModelSubject, names: Sequence[str], label: str
) -> tuple[list[Trial], list[tuple[str, str]]]:
    """Compare the attention maps of all layers."""
    try:
        comparison = compare_backends(subject.model, backends=names, **subject.inputs)
    except (CaptureError, ValueError, TypeError, RuntimeError) as error:
        line = (str(error).splitlines() or [""])[0][:70]
        return [], [("maps", f"not compared{label}: {line}")]
    notes = []
    departing = [d for d in comparison.layers if d.departs]
    if departing:
        noise = _noise_of_maps(subject)
        departing = [d for d in departing if d.mass_moved > noise.get((d.name, d.call), 0.0)]
    first: LayerDifference | None = next(iter(departing), None)
    if first is not None:
        text = f"{first.name} departs first in {first.backend}{label}: "
        notes.append(("maps", f"{text}{first.mass_moved:.2g} of a row's mass moved"))
    if comparison.unpaired:
        return [], [*notes, ("maps", f"in one backend only: {comparison.unpaired[0]}")]
    moved = torch.tensor([[d.mass_moved if d in departing else 0.0 for d in comparison.layers]])
    what = f"maps in {', '.join(names[1:])} against {names[0]}{label}"
    return [Trial("maps", what, moved, 0.0, moved.numel(), axis="layer")], notes


def _noise_of_maps(subject: ModelSubject) -> dict[tuple[str, int], float]:
    """How far a row of each layer may move: a multiple of what a rounding of the inputs does."""
    base = _captured(subject, None)
    worst = dict.fromkeys(base, 0.0)
    for seed in range(4):
        for key, weights in _captured(subject, seed).items():
            if key in base and base[key].shape == weights.shape:
                gap = (base[key] - weights).abs().sum(-1).max()
                worst[key] = max(worst[key], TIMES * float(gap) / 2)
    return worst


def _captured(subject: ModelSubject, seed: int | None) -> dict[tuple[str, int], Tensor]:
    with contextlib.ExitStack() as stack:
        if seed is not None:
            subject = stack.enter_context(jiggling(subject, seed))
        maps = AttentionExtractor(subject.model, strict=False).get_attention(**subject.inputs)
    return {(h.name, h.call): h.weights.float().nan_to_num(0) for h in maps.layers}


def _asked(subject: ModelSubject, label: str, extra: dict[str, Any]) -> Trial:
    """Compare with a call that asks for attention."""
    moved = distance(output(subject), output(subject, **extra))
    replay = Replay(
        one=lambda: call(subject),
        two=lambda: call(subject, **extra),
        align_one=lambda held: held,
        align_two=lambda held: held,
        subject=subject,
        extra=extra,
    )
    what = f"output{label}, against without"
    limit = noise_of(subject).limit
    return Trial("asked", what, moved, limit, moved.numel(), replay=replay)


@contextmanager
def backend(subject: ModelSubject, name: str) -> Iterator[None]:
    """Run the model in a backend; afterwards it is in the one it was in."""
    if name in OF_TORCH:
        with torch_backend(name):
            yield
        return
    model: Any = subject.model
    if not hasattr(model, "set_attn_implementation"):
        raise ValueError(f"backends: {name!r}; of {subject.name} there are {', '.join(OF_TORCH)}")
    with unchanged_backend(model):
        model.set_attn_implementation(name)
        yield


@contextmanager
def torch_backend(name: str) -> Iterator[None]:
    """Let torch choose its kernels, or take the reference arithmetic without any fast path."""
    if name == "default":
        yield
        return
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
