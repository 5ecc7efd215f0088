"""Padding changes nothing at real positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal, Unpack

import torch
from torch import Tensor, nn

from attncheck.attention import LayerAttention
from attncheck.checks.door import raise_if_failed
from attncheck.checks.finding import Finding
from attncheck.model_checks.altering import other_content, padded, real_positions, shortened
from attncheck.model_checks.conclude import Words, conclude
from attncheck.model_checks.noise import distance, noise_of
from attncheck.model_checks.registry import register
from attncheck.model_checks.running import call, input_gradient, output
from attncheck.model_checks.subject import ModelSubject, Stream, SubjectOptions
from attncheck.model_checks.trial import Replay, Trial

__all__ = ["Side", "assert_padding_invariant", "judge_padding"]

Side = Literal["left", "right", "both"]

WORDS: Final = Words(
    check="padding_invariant",
    broken="padding changes the output",
    holds="padding changes nothing",
    rule="output at real positions is the same with and without padding",
    hint="check the padding mask of that layer, and position ids under left padding",
    column="padding mass",
)


def assert_padding_invariant(
    model: nn.Module | ModelSubject,
    inputs: Any = None,
    *,
    side: Side | None = None,
    **options: Unpack[SubjectOptions],
) -> None:
    """Assert that padding a sequence leaves its outputs at real positions as they were.

    The first sequence of the batch is cut short and padded to its old length, beside others that
    stay whole. Three methods: the padded run is compared with the short sequence run without
    padding; the content of padded positions is replaced, nothing real may move; and the gradient
    of real outputs must be exactly 0 on padded positions. Under left padding a model that takes
    ``position_ids`` gets those that count real tokens only, as ``generate`` does.

    Args:
        model: Any module, or a `ModelSubject`.
        inputs: What it is called with. Default, for Hugging Face models: small random ones.
        side: ``"left"``, ``"right"`` or ``"both"``. Default: both for decoders, right for others.
        options: What cannot be found out from the model, see `ModelSubject`.

    Raises:
        CheckFailure: An output at a real position moved.
        ValueError: The model has no padding mask.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=8, batch_first=True)
        >>> assert_padding_invariant(layer, torch.randn(2, 6, 8))
        >>> mean = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
        >>> assert_padding_invariant(mean, torch.randn(2, 6, 8))
        Traceback (most recent call last):
        ValueError: mask: Sequential takes no padding mask; ...
    """
    __tracebackhide__ = True
    raise_if_failed(judge_padding(ModelSubject.of(model, inputs, **options), side))


def _applies(subject: ModelSubject) -> str:
    if not any(subject.sequential(s) and s.mask for s in _streams(subject)):
        return "it takes no padding mask"
    if min(subject.inputs[s.name].shape[1] for s in _streams(subject)) < 4:
        return "fewer than 4 positions to pad"
    return ""


@register(
    "padding-invariant",
    reason="what stands beside a sequence in a batch must not change it",
    source="transformers issues 25420 and 31547 on left padding and position ids",
    applies=_applies,
    tags=("mask", "batch", "positions"),
)
def judge_padding(subject: ModelSubject, side: Side | None = None) -> Finding:
    """Find outputs that padding changes; arguments as `assert_padding_invariant`."""
    if side not in (None, "left", "right", "both"):
        raise ValueError(f"side: {side!r}; expected 'left', 'right' or 'both'")
    streams = [s for s in _streams(subject) if s.mask and subject.sequential(s)]
    if not streams:
        raise ValueError(
            f"mask: {subject.name} takes no padding mask; pass mask= the name of the argument"
        )
    trials: list[Trial] = []
    notes: list[tuple[str, str]] = []
    for stream in streams:
        for one in _sides(subject, side):
            held = _Padded(subject, stream, one)
            trials += [held.compared(), held.perturbed()]
            gradient = held.gradient()
            trials += [gradient] if isinstance(gradient, Trial) else []
            notes += [("gradient", gradient)] if isinstance(gradient, str) else []
    return conclude(subject, WORDS, trials, noise_of(subject), notes[:1])


def _streams(subject: ModelSubject) -> list[Stream]:
    return [s for s in (subject.source, subject.stream) if s is not None]


def _sides(subject: ModelSubject, side: Side | None) -> list[str]:
    if side is not None:
        return ["right", "left"] if side == "both" else [side]
    return ["right", "left"] if subject.kind == "decoder" else ["right"]


class _Padded:
    """One sequence padded at one side, and what must not change."""

    def __init__(self, subject: ModelSubject, stream: Stream, side: str) -> None:
        self.subject, self.stream, self.side = subject, stream, side
        self.length = int(subject.inputs[stream.name].shape[1])
        self.count = max(self.length // 4, 1)
        real = real_positions(subject, stream)
        whole = subject.having(**{stream.mask or "": stream.mask_of(real)})
        self.padded = padded(whole, stream, self.count, side)
        self.short = shortened(whole, stream, 0, self.length - self.count)
        self.label = f"{stream.name} padded {side} by {self.count}"
        self.limit = noise_of(subject).limit

    def compared(self) -> Trial:
        """Compare with the short sequence run without padding."""
        alone, beside = self.first(output(self.short)), self.first(output(self.padded))
        beside = self.real(beside)
        moved = distance(alone, beside[:, : alone.shape[1]])
        return self.trial(
            "compared",
            f"{self.label}, against no padding",
            moved,
            lambda: call(self.short),
            lambda held: self.first(held),
        )

    def perturbed(self) -> Trial:
        """Replace what padded positions hold."""
        changed = other_content(self.padded, self.stream, self._where(), special=True)
        one, two = self.first(output(self.padded)), self.first(output(changed))
        moved = distance(self.real(one), self.real(two))
        return self.trial(
            "perturbed",
            f"{self.label}, its content replaced",
            moved,
            lambda: call(changed),
            self._aligned,
        )

    def gradient(self) -> Trial | str:
        """Ask for the gradient of real outputs on padded positions."""
        shape = output(self.padded).shape[:2]
        kept = torch.zeros(shape, dtype=torch.bool)
        follows = shape[1] == self.length and self.stream is self.subject.stream
        kept[0] = ~self._where()[0].cpu() if follows else True
        found = input_gradient(self.padded, self.stream, kept)
        if isinstance(found, str):
            return found
        held = self._pads(found)
        offset = self.length - self.count if self.side == "right" else 0
        what = f"of real outputs on padding, {self.label}"
        return Trial("gradient", what, held, 0.0, self.count, offset=offset, axis="input")

    def first(self, held: Tensor) -> Tensor:
        """Keep the padded sequence of the batch."""
        return held[:1]

    def real(self, held: Tensor) -> Tensor:
        """Keep real positions, where this has positions of the padded stream."""
        if self.stream is not self.subject.stream or held.shape[1] != self.length:
            return held
        return self._real_part(held)

    def trial(
        self,
        method: str,
        what: str,
        moved: Tensor,
        other: Callable[[], Any],
        align: Callable[[Tensor], Tensor | None],
    ) -> Trial:
        """Build a trial whose first run is the other one, the second the padded one."""
        replay = Replay(
            one=other,
            two=lambda: call(self.padded),
            align_one=align,
            align_two=self._aligned,
            subject=self.padded,
            extra={},
            forbidden=self._keys,
        )
        follows = self.stream is self.subject.stream and self.side == "left"
        offset = self.count if follows and moved.shape[1] > 1 else 0
        return Trial(method, what, moved, self.limit, moved.shape[1], offset=offset, replay=replay)

    def _aligned(self, held: Tensor) -> Tensor | None:
        """What must agree in a module's output: real positions of the padded sequence."""
        if held.shape[0] != self.subject.batch or held.ndim < 3:
            return None
        return self._real_part(held[:1]) if held.shape[1] == self.length else held[:1]

    def _real_part(self, held: Tensor) -> Tensor:
        return held[:, self.count :] if self.side == "left" else held[:, : self.length - self.count]

    def _pads(self, held: Tensor) -> Tensor:
        cut = self.length - self.count
        return held[:1, : self.count] if self.side == "left" else held[:1, cut:]

    def _where(self) -> Tensor:
        where = torch.zeros(self.subject.batch, self.length, dtype=torch.bool)
        self._pads(where).fill_(True)
        return where.to(self.subject.device)

    def _keys(self, layer: LayerAttention) -> Tensor | None:
        """Cells of a layer whose key is padding and whose query is real."""
        if layer.n_key != self.length or layer.batch != self.subject.batch:
            return None
        pads = self._where().to(layer.weights.device)
        cells = pads[:, None, None, :].expand(-1, 1, layer.n_query, -1)
        if layer.n_query == self.length and layer.kind != "cross":
            cells = cells & ~pads[:, None, :, None]
        return cells
