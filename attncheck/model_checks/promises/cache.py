"""Decoding with a cache gives what one pass gives."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Unpack

import torch
from torch import Tensor, nn

from attncheck.checks.door import raise_if_failed
from attncheck.checks.finding import Finding
from attncheck.model_checks.altering import padded, real_positions
from attncheck.model_checks.conclude import Words, conclude
from attncheck.model_checks.decoding_cache import cache_argument, held_cache, holds_keys
from attncheck.model_checks.noise import distance, noise_of
from attncheck.model_checks.outputs import OutputReader
from attncheck.model_checks.registry import register
from attncheck.model_checks.running import call, evaluating, output, random_state, shaped
from attncheck.model_checks.subject import ModelSubject, SubjectOptions
from attncheck.model_checks.trial import Replay, Trial

__all__ = ["assert_cache_consistent", "judge_cache"]

WORDS: Final = Words(
    check="cache_consistent",
    broken="the cache changes the output",
    holds="the cache changes nothing",
    rule="prefill and steps give what one pass gives",
    hint="check positions, mask length and cache writes of that step",
    column="mass moved",
)


def assert_cache_consistent(
    model: nn.Module | ModelSubject, inputs: Any = None, **options: Unpack[SubjectOptions]
) -> None:
    """Assert that decoding with a key-value cache gives what one pass over everything gives.

    Tried are a prefill and single steps, a prefill in chunks, a static cache where a Hugging Face
    model can have one, and steps after a left-padded prefill. Layers with a sliding window use
    their sliding caches when the inputs are longer than the window.

    Args:
        model: Any module, or a `ModelSubject`.
        inputs: What it is called with. Default, for Hugging Face models: small random ones.
        options: What cannot be found out from the model, see `ModelSubject`; ``step`` for a model
            that is none of transformers': ``step(model, chunk, cache) -> (output, cache)``.

    Raises:
        CheckFailure: An output differs from that of one pass.
        ValueError: The model returns no key-value cache, and no ``step`` was given.

    Example:
        >>> model = nn.Embedding(10, 4)  # needs no cache: every token stands alone
        >>> ids = torch.arange(8).reshape(2, 4)
        >>> def step(model, chunk, cache):
        ...     return model(chunk), cache
        >>> assert_cache_consistent(model, ids, step=step)
    """
    __tracebackhide__ = True
    subject = ModelSubject.of(model, inputs, **options)
    reason = _applies(subject)
    if reason:
        raise ValueError(f"step: {reason}; pass step=(model, chunk, cache) -> (output, cache)")
    raise_if_failed(judge_cache(subject))


def _applies(subject: ModelSubject) -> str:
    if subject.step is not None:
        return ""
    if not subject.huggingface or not subject.causal or not cache_argument(subject.parameters):
        return "it takes no cache that is known"
    if not subject.is_sequence or subject.length < 4:
        return "fewer than 4 positions"
    cache = held_cache(call(subject, use_cache=True))
    if cache is None:
        return "it returns no cache"
    return "" if holds_keys(cache) else "its cache holds no keys"


@dataclass(frozen=True)
class _Plan:
    """One way of going through a sequence.

    Attributes:
        what: Its name.
        cuts: Where chunks end; the last is the length.
        make: Makes the first cache.
        subject: The model and its inputs.
    """

    what: str
    cuts: tuple[int, ...]
    subject: ModelSubject
    make: Callable[[], Any] = lambda: None

    def chunks(self) -> list[tuple[int, int]]:
        return list(zip((0, *self.cuts[:-1]), self.cuts, strict=True))


@register(
    "cache-consistent",
    reason="a cache that is off by one position gives fluent, wrong text",
    source="transformers issues 25420, 32848; Pope et al. 2022 on key-value caches",
    applies=_applies,
    tags=("cache", "positions"),
)
def judge_cache(subject: ModelSubject) -> Finding:
    """Find outputs that a cache changes; arguments as `assert_cache_consistent`."""
    trials: list[Trial] = []
    notes: list[tuple[str, str]] = []
    for number, plan in enumerate(_plans(subject)):
        try:
            trials.append(_tried(plan))
        except Exception as error:
            if number == 0:
                raise
            line = (str(error).splitlines() or [""])[0][:80]
            notes.append((plan.what, f"refused: {type(error).__name__}: {line}"))
    return conclude(subject, WORDS, trials, noise_of(subject), notes)


def _plans(subject: ModelSubject) -> list[_Plan]:
    length = subject.length
    half = max(length // 2, 1)
    single = (half, *range(half + 1, length + 1))
    chunked = tuple(dict.fromkeys((*range(3, length, 4), length)))
    plans = [
        _Plan(f"prefill of {half}, then single steps", single, subject),
        _Plan("prefill in chunks of 3 and 4", chunked, subject),
    ]
    if subject.step is not None:
        return plans
    if subject.kind == "decoder" and getattr(subject.model, "_can_compile_fullgraph", False):
        plans.append(_Plan("static cache, single steps", single, subject, _static(subject)))
    stream = subject.stream
    if subject.kind == "decoder" and stream.mask is not None:
        left = padded(subject, stream, max(length // 4, 1), "left")
        plans.append(_Plan("left padding, single steps", single, left))
    return plans


def _static(subject: ModelSubject) -> Callable[[], Any]:
    def make() -> Any:
        transformers = sys.modules["transformers"]
        model: Any = subject.model
        return transformers.StaticCache(config=model.config, max_cache_len=subject.length + 2)

    return make


def _tried(plan: _Plan) -> Trial:
    subject = plan.subject
    whole = output(subject)
    cache = plan.make()
    parts = []
    for start, stop in plan.chunks():
        part, cache = _step(subject, start, stop, cache)
        parts.append(part)
    real = real_positions(subject, subject.stream).cpu()
    moved = distance(whole, torch.cat(parts, dim=1)).cpu().masked_fill(~real, 0)
    limit = noise_of(subject).limit
    return Trial(
        "compared", plan.what, moved, limit, int(real.sum()), replay=_replay(plan, moved, limit)
    )


def _step(subject: ModelSubject, start: int, stop: int, cache: Any) -> tuple[Tensor, Any]:
    """Run positions from ``start`` to ``stop`` on top of a cache."""
    stream = subject.stream
    chunk = subject.inputs[stream.name][:, start:stop]
    if subject.step is not None:
        with evaluating(subject.model), random_state(0, subject.device):
            returned, cache = subject.step(subject.model, chunk, cache)
        if isinstance(returned, Tensor):
            subject = replace(subject, reader=OutputReader())
        return shaped(subject, returned, stop - start), cache
    given: dict[str, Any] = {}
    for name, value in subject.inputs.items():
        whole = isinstance(value, Tensor) and value.shape[:2] == (subject.batch, subject.length)
        own = name.startswith("decoder_") == stream.name.startswith("decoder_")
        if whole and own:
            value = value[:, :stop] if name == stream.mask else value[:, start:stop]
        given[name] = value
    given |= {cache_argument(subject.parameters) or "cache": cache, "use_cache": True}
    with evaluating(subject.model), random_state(0, subject.device):
        returned = subject.model(**given)
    return shaped(subject, returned, stop - start), held_cache(returned)


def _replay(plan: _Plan, moved: Tensor, limit: float) -> Replay | None:
    """Set up the first chunk that differs: all before it is no news."""
    subject = plan.subject
    wrong = [(a, b) for a, b in plan.chunks() if not bool((moved[:, a:b] <= limit).all())]
    if not wrong:
        return None
    start, stop = wrong[0]
    held: list[Any] = []

    def before() -> None:
        cache = plan.make()
        for first, last in plan.chunks():
            if first == start:
                break
            _, cache = _step(subject, first, last, cache)
        held[:] = [cache]

    def part(held: Tensor) -> Tensor | None:
        fits = held.ndim > 2 and held.shape[1] == subject.length
        return held[:, start:stop] if fits else None

    return Replay(
        one=lambda: call(subject),
        two=lambda: _step(subject, start, stop, held[0]),
        align_one=part,
        align_two=lambda found: found if found.shape[1] == stop - start else None,
        subject=subject,
        extra={},
        between=before,
        queries=(start, stop),
    )
