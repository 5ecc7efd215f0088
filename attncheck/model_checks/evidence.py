"""The attention rows that show a mistake: weight where none belongs, or rows that moved."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from attncheck.attention import LayerAttention
from attncheck.capture import AttentionExtractor
from attncheck.checks.finding import Evidence, Offender
from attncheck.checks.subject import head_label, open_subject
from attncheck.errors import CaptureError
from attncheck.model_checks.trial import Replay

__all__ = ["COLUMNS", "guilty_heads"]

COLUMNS: Final = ("forbidden mass", "weights", "worst")
"""Of the table of heads."""

SMALL: Final = 1e-12
"""A weight up to this is nothing: the least that a mask of finite numbers leaves."""

Shown = tuple[LayerAttention, Tensor]
"""A layer, and how wrong each of its cells is: ``(batch, head, query, key)``."""


def guilty_heads(
    model: nn.Module, replay: Replay, layer: str | None
) -> tuple[list[Offender], Evidence | None]:
    """Capture the model and list its heads, those that are most wrong first.

    Where keys are forbidden, a head is wrong by the weight it puts on them; elsewhere by how far
    its weights moved between the two runs.

    Args:
        model: The model.
        replay: The two runs.
        layer: Only heads inside or around this module, where there are some.
    """
    shown = _forbidden(model, replay) if replay.forbidden is not None else _moved(model, replay)
    found = [
        (float(cells[:, head].sum(-1).max()), held, head, cells)
        for held, cells in shown
        for head in range(held.n_heads)
    ]
    found = [one for one in found if one[0] > SMALL]
    near = [one for one in found if layer is not None and _related(one[1].name, layer)]
    found = sorted(near or found, key=lambda one: -one[0])
    if not found:
        return [], None
    return [_offender(*one) for one in found], _evidence(*found[0][1:])


def _forbidden(model: nn.Module, replay: Replay) -> list[Shown]:
    assert replay.forbidden is not None
    shown = []
    for held in _captured(model, replay.two):
        cells = replay.forbidden(held)
        if cells is not None:
            wide = held.weights.float().nan_to_num(0)
            shown.append((held, wide.masked_fill(~cells, 0)))
    return shown


def _moved(model: nn.Module, replay: Replay) -> list[Shown]:
    """Pair the layers of both runs by name and call, and compare the rows that both have."""
    one = {(held.name, held.call): held for held in _captured(model, replay.one)}
    if replay.between is not None:
        replay.between()
    shown = []
    for held in _captured(model, replay.two):
        other = one.get((held.name, held.call))
        if other is None:
            continue
        before = other.weights
        if replay.queries is not None and before.shape[2] > held.n_query:
            before = before[:, :, slice(*replay.queries)]
        batch, keys = min(len(before), held.batch), min(before.shape[3], held.n_key)
        now = held.weights[:batch, :, :, :keys].float().nan_to_num(0)
        before = before[:batch, :, :, :keys].float().nan_to_num(0)
        if now.shape == before.shape:
            kept = replace(held, weights=held.weights[:batch, :, :, :keys], mask=None)
            shown.append((kept, (now - before).abs() / 2))
    return shown


def _captured(model: nn.Module, run: Callable[[], Any]) -> list[LayerAttention]:
    extractor = AttentionExtractor(model, strict=False)
    with warnings.catch_warnings(), contextlib.suppress(CaptureError, RuntimeError, ValueError):
        warnings.simplefilter("ignore")
        with extractor:
            run()
        return list(extractor.maps.layers)
    return []


def _offender(mass: float, layer: LayerAttention, head: int, cells: Tensor) -> Offender:
    batch, query, key = _worst(cells, head)
    at = open_subject([layer.weights]).position(replace(layer, mask=None), batch, query, key)
    count = int((cells[:, head] > SMALL).sum())
    return Offender(
        head_label(layer, head), (mass, count), float(cells[batch, head, query, key]), at
    )


def _evidence(layer: LayerAttention, head: int, cells: Tensor) -> Evidence:
    batch, query, key = _worst(cells, head)
    subject = open_subject([layer.weights])
    return subject.evidence(layer, head, batch, cells > SMALL, around=(query, key))


def _worst(cells: Tensor, head: int) -> tuple[int, int, int]:
    place = torch.unravel_index(cells[:, head].argmax(), cells[:, head].shape)
    batch, query, key = (int(index) for index in place)
    return batch, query, key


def _related(name: str, layer: str) -> bool:
    return f"{name}.".startswith(f"{layer}.") or f"{layer}.".startswith(f"{name}.")
