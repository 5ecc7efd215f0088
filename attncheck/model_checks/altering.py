"""Changing what goes into a model: other content, padding, fewer positions, other batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attncheck.model_checks.subject import ModelSubject, Stream

__all__ = ["other_content", "padded", "rows", "shortened"]


def other_content(
    subject: ModelSubject, stream: Stream, where: Tensor, *, special: bool = False
) -> ModelSubject:
    """Replace what a sequence holds at some positions.

    Ids become other ids that the inputs hold too, and special ones stay; vectors become others of
    the same size.

    Args:
        subject: The model and its inputs.
        stream: Which sequence.
        where: Bool ``(batch, position)``; for inputs without positions ``(batch, 1)``.
        special: Replace special ids too, as at padding.
    """
    held: Tensor = subject.inputs[stream.name]
    where = where.to(held.device)
    if held.is_floating_point():
        spread = where.reshape(*where.shape, *([1] * (held.ndim - where.ndim)))
        random = torch.Generator().manual_seed(1)
        fresh = torch.randn(held.shape, generator=random).to(held.device)
        wide = held.float()
        mean, std = wide.mean(), wide.std().clamp(min=1e-3)
        return subject.having(
            **{stream.name: torch.where(spread, (mean + fresh * std).to(held.dtype), held)}
        )
    return subject.having(
        **{stream.name: torch.where(where, _other_ids(subject, held, special), held)}
    )


def _other_ids(subject: ModelSubject, held: Tensor, every: bool) -> Tensor:
    special = torch.tensor(sorted(subject.special_ids), dtype=held.dtype, device=held.device)
    pool = torch.unique(held)
    pool = pool[~torch.isin(pool, special)]
    if len(pool) < 2:
        return torch.where(held > 0, held - 1, held + 1)
    place = torch.searchsorted(pool, held.contiguous()).clamp(max=len(pool) - 1)
    moved = pool[(place + 1 + len(pool) // 3) % len(pool)]
    moved = torch.where(moved == held, pool[(place + 1) % len(pool)], moved)
    return moved if every else torch.where(torch.isin(held, special), held, moved)


def rows(subject: ModelSubject, chosen: Sequence[int]) -> ModelSubject:
    """Keep some sequences of the batch, in this order."""
    index = torch.tensor(list(chosen))

    def kept(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim and value.shape[0] == subject.batch:
            return value[index.to(value.device)]
        return value

    return subject.having(**{name: kept(value) for name, value in subject.inputs.items()})


def shortened(subject: ModelSubject, stream: Stream, start: int, stop: int) -> ModelSubject:
    """Keep the positions from ``start`` to ``stop`` of one sequence, and of what goes with it."""
    length = subject.inputs[stream.name].shape[1]
    changed = {
        name: value[:, start:stop]
        for name, value in subject.inputs.items()
        if _belongs(name, stream) and _has_positions(value, subject.batch, length)
    }
    return subject.having(**changed)


def padded(subject: ModelSubject, stream: Stream, count: int, side: str) -> ModelSubject:
    """Take the last positions off the first sequence and pad it to its old length.

    The other sequences stay whole, so that the batch is one of different lengths. Position numbers
    count real positions only, as ``generate`` has them.
    """
    length = subject.inputs[stream.name].shape[1]
    real = real_positions(subject, stream)
    changed: dict[str, Any] = {}
    for name, value in subject.inputs.items():
        if not (_belongs(name, stream) and _has_positions(value, subject.batch, length)):
            continue
        value = value.clone()
        empty = torch.zeros_like(value[0, :count])
        if name == stream.name and not value.is_floating_point():
            empty.fill_(subject.pad_id)
        kept = value[0, : length - count].clone()
        value[0] = torch.cat([empty, kept] if side == "left" else [kept, empty])
        changed[name] = value
    real = real.clone()
    real[0, :count] = side != "left"
    real[0, length - count :] = side == "left"
    if stream.mask is not None:
        changed[stream.mask] = stream.mask_of(real)
    if side == "left" and stream.positions is not None:
        changed[stream.positions] = (real.long().cumsum(1) - 1).clamp(min=0)
    return subject.having(**changed)


def real_positions(subject: ModelSubject, stream: Stream) -> Tensor:
    """Return bool ``(batch, position)``: which positions are real in the given inputs."""
    held = subject.inputs[stream.name]
    mask = None if stream.mask is None else subject.inputs.get(stream.mask)
    if isinstance(mask, Tensor) and mask.shape == held.shape[:2]:
        return ~mask.bool() if stream.mask_hides else mask.bool()
    return torch.ones(held.shape[:2], dtype=torch.bool, device=held.device)


def _belongs(name: str, stream: Stream) -> bool:
    """Whether an argument goes with a sequence: the decoder's with the decoder's."""
    if stream.name in ("src", "tgt"):
        return name.startswith(stream.name)
    return name.startswith("decoder_") == stream.name.startswith("decoder_")


def _has_positions(value: Any, batch: int, length: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 1 and value.shape[:2] == (batch, length)
