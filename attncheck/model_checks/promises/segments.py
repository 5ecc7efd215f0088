"""Documents of one packed sequence do not see each other."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from attncheck.attention import AttentionLike, LayerAttention
from attncheck.checks import assert_segments_isolated as assert_maps_isolated
from attncheck.checks.door import raise_if_failed
from attncheck.checks.finding import Finding
from attncheck.model_checks.altering import other_content, shortened
from attncheck.model_checks.captured import attention_of
from attncheck.model_checks.conclude import Words, conclude
from attncheck.model_checks.huggingface import text_config
from attncheck.model_checks.noise import distance, noise_of
from attncheck.model_checks.registry import register
from attncheck.model_checks.running import call, input_gradient, output
from attncheck.model_checks.subject import ModelSubject
from attncheck.model_checks.trial import Replay, Trial

__all__ = ["assert_segments_isolated", "judge_segments"]

WORDS: Final = Words(
    check="segments_isolated",
    broken="documents see each other",
    holds="documents are isolated",
    rule="a packed document comes out as it does alone",
    hint="the mask must be block-diagonal, and positions start again with each document",
    column="foreign mass",
)


def assert_segments_isolated(
    attn: AttentionLike | nn.Module | ModelSubject,
    *args: Any,
    segment_ids: Any = None,
    **options: Any,
) -> None:
    """Assert that nothing in a packed sequence sees another segment: in weights, or in a model.

    Of attention weights: ``assert_segments_isolated(attn, segment_ids)``, no query attends to a key
    of another segment. Of a model: ``assert_segments_isolated(model, inputs, segments=...)``, each
    document of a packed sequence comes out as it does alone. Three methods: another document is
    replaced, nothing may move; each is run alone; and its gradient on the others is exactly 0.

    Args:
        attn: Attention weights in any form that `as_attention` takes, or a model.
        args: For weights: ``segment_ids``. For a model: its inputs.
        segment_ids: Integers ``(key,)`` or ``(batch, key)``: equal for tokens that may see each
            other. For a model: documents in order, ``(position,)``; default: two halves.
        options: For weights: ``tokens``, ``mask``, ``heads``, ``atol``, ``name``, where ``mask``
            says which keys are visible. For a model: see `ModelSubject`; ``segments`` names the
            argument that takes segment ids, or is ``"position_ids"``: positions start again at 0,
            as Hugging Face decoders read it.

    Raises:
        CheckFailure: Something sees another segment.
        ValueError: There is one segment only, ``segment_ids`` does not fit, or the model has no
            argument that tells documents apart.

    Example:
        >>> packed = torch.block_diag(torch.full((2, 2), 0.5), torch.full((3, 3), 1 / 3))
        >>> assert_segments_isolated(packed, [0, 0, 1, 1, 1])
        >>> assert_segments_isolated(packed, [0, 0, 0, 1, 1])
        Traceback (most recent call last):
        attncheck.CheckFailure: not isolated: 4 of 12 foreign weights > 1e-05
        ...
    """
    __tracebackhide__ = True
    if not isinstance(attn, nn.Module | ModelSubject):
        given = args if segment_ids is None else (segment_ids, *args)
        return assert_maps_isolated(attn, *given, **options)
    subject = ModelSubject.of(attn, *args, **options)
    reason = _applies(subject)
    if reason:
        raise ValueError(f"segments: {reason}; pass segments= the name of the argument")
    raise_if_failed(judge_segments(subject, segment_ids))
    return None


def _applies(subject: ModelSubject) -> str:
    if subject.segments is None:
        return "no argument of it tells documents apart"
    if subject.huggingface and _has_other_mixers(subject):
        return "it mixes tokens by other means than attention too"
    return "" if subject.is_sequence and subject.length > 3 else "fewer than 4 positions"


@register(
    "segments-isolated",
    reason="packing must not let one document read another",
    source="Krell et al. 2021, sequence packing without cross-contamination",
    applies=_applies,
    tags=("mask", "packing", "positions"),
)
def judge_segments(subject: ModelSubject, segment_ids: Any = None) -> Finding:
    """Find documents that see each other; arguments as `assert_segments_isolated`."""
    ids = _ids(subject, segment_ids)
    alone = _without_mask(subject)
    packed = _packed(alone, ids)
    extra = {"use_cache": False} if "use_cache" in subject.parameters else {}
    base = output(packed, **extra)
    trials: list[Trial] = []
    notes: list[tuple[str, str]] = []
    for document in torch.unique(ids).tolist():
        where = ids == document
        held = _Document(packed, alone, where, base, extra)
        trials.append(held.perturbed())
        if packed.stream.positions is not None:
            trials.append(held.compared())
        found = input_gradient(packed, packed.stream, where.expand(packed.batch, -1), **extra)
        if isinstance(found, str):
            notes = [("gradient", found)]
            continue
        what = f"of document {document} on the others"
        moved = found.masked_fill(where.to(found.device), 0)
        judged = int((~where).sum()) * packed.batch
        trials.append(Trial("gradient", what, moved, 0.0, judged, axis="input"))
    return conclude(subject, WORDS, trials, noise_of(subject), notes)


def _has_other_mixers(subject: ModelSubject) -> bool:
    """Whether some layers are no attention: state spaces read no packed positions."""
    depth = getattr(text_config(subject.model), "num_hidden_layers", None)
    held = {layer.name for layer in attention_of(subject) if layer.kind != "cross"}
    return isinstance(depth, int) and len(held) < depth


class _Document:
    """One document of a packed sequence, and what must not change it."""

    def __init__(
        self,
        packed: ModelSubject,
        alone: ModelSubject,
        where: Tensor,
        base: Tensor,
        extra: dict[str, Any],
    ) -> None:
        self.packed, self.alone, self.where, self.base = packed, alone, where, base
        self.extra = extra
        places = where.nonzero().flatten().tolist()
        self.start, self.stop = places[0], places[-1] + 1

    def perturbed(self) -> Trial:
        """Replace the other documents."""
        others = (~self.where).expand(self.packed.batch, -1)
        changed = other_content(self.packed, self.packed.stream, others)
        moved = distance(self.base, output(changed, **self.extra))
        what = f"what is not tokens {self.start} to {self.stop - 1} replaced"
        return self._trial("perturbed", what, moved[:, self.start : self.stop], changed)

    def compared(self) -> Trial:
        """Run the document alone."""
        short = shortened(self.alone, self.alone.stream, self.start, self.stop)
        found = output(short, **self.extra)
        moved = distance(self.base[:, self.start : self.stop], found)
        what = f"tokens {self.start} to {self.stop - 1} run alone"
        return self._trial("compared", what, moved, short)

    def _trial(self, method: str, what: str, moved: Tensor, other: ModelSubject) -> Trial:
        length, part = self.packed.length, slice(self.start, self.stop)

        def cut(held: Tensor) -> Tensor | None:
            if held.ndim < 3 or held.shape[0] != self.packed.batch:
                return None
            whole = held.shape[1] == length
            return held[:, part] if whole else held if held.shape[1] == other.length else None

        replay = Replay(
            one=lambda: call(other, **self.extra),
            two=lambda: call(self.packed, **self.extra),
            align_one=cut,
            align_two=cut,
            subject=self.packed,
            extra=self.extra,
            forbidden=self._foreign,
        )
        limit = noise_of(self.packed).limit
        judged = moved.numel()
        return Trial(method, what, moved, limit, judged, offset=self.start, replay=replay)

    def _foreign(self, layer: LayerAttention) -> Tensor | None:
        """Cells between a query of this document and a key of another."""
        if layer.kind == "cross" or layer.n_query != layer.n_key != self.packed.length:
            return None
        where = self.where.to(layer.weights.device)
        return (where[:, None] & ~where[None, :])[None, None]


def _ids(subject: ModelSubject, segment_ids: Any) -> Tensor:
    """Turn segment ids into ``(position,)``: documents in order."""
    if segment_ids is None:
        half = subject.length // 2
        return (torch.arange(subject.length) >= half).long().to(subject.device)
    ids = torch.as_tensor(segment_ids).detach().to(subject.device)
    if ids.shape != (subject.length,) or ids.is_floating_point():
        raise ValueError(
            f"segment_ids: {ids.dtype} of shape {tuple(ids.shape)}; expected integers "
            f"({subject.length},), one for each position"
        )
    if len(torch.unique(ids)) < 2 or bool((ids.diff() < 0).any()):
        raise ValueError("segment_ids: expected two documents at least, numbered in their order")
    return ids


def _without_mask(subject: ModelSubject) -> ModelSubject:
    """Leave the padding mask out: with one, decoders read no documents off positions."""
    mask = subject.stream.mask
    return subject if mask is None else subject.having(**{mask: None})


def _packed(subject: ModelSubject, ids: Tensor) -> ModelSubject:
    """Tell documents apart, and start positions again with each where the model takes them."""
    starts = torch.searchsorted(ids.contiguous(), ids.contiguous())
    restarted = torch.arange(len(ids), device=ids.device) - starts
    given = {subject.segments or "": ids, subject.stream.positions or "position_ids": restarted}
    if subject.stream.positions is None and subject.segments != "position_ids":
        del given["position_ids"]
    spread = {name: held.expand(subject.batch, -1).contiguous() for name, held in given.items()}
    return subject.having(**spread)
