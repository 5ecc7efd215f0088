"""Whether a model attends as a decoder does, where its kind is not declared.

A mask leaves zeros, a softmax over everything none. A decoder whose mask is off by one still gives
exactly nothing to keys two and more ahead, and an encoder, also one that looks a few keys around
itself, gives as much to later keys as to earlier ones.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from attncheck.attention import LayerAttention
from attncheck.attention.maps import head_name
from attncheck.errors import CaptureError
from attncheck.model_checks.captured import attention_of
from attncheck.model_checks.evidence import SMALL
from attncheck.model_checks.registry import Guess
from attncheck.model_checks.subject import ModelSubject

__all__ = ["guess_causality"]

SHORTEST: Final = 6
"""With fewer positions too few keys lie two and more ahead."""

LOOKED_AT: Final = 256
"""Positions that are looked at: a mask shows in the first."""

STRAY: Final = 0.01
"""Share of the cells two and more ahead that may carry weight in a decoder with a mistake."""

TIMES: Final = 10
"""A decoder gives weight to this many times as many cells two and more behind as ahead."""

DECIDE: Final = "pass kind='decoder', or what else it is"


def guess_causality(subject: ModelSubject) -> Guess:
    """Look at every head: do they attend as those of a decoder do?

    Only heads that all do make the model a decoder. Of a model in which some see later keys it
    can't be told whether a mask was lost or none was meant.
    """
    held = subject.measured
    if "causality" not in held:
        held["causality"] = _guessed(subject)
    guess: Guess = held["causality"]
    return guess


def _guessed(subject: ModelSubject) -> Guess:
    if subject.length < SHORTEST:
        return Guess(False, f"{subject.length} positions are too few to tell; {DECIDE}")
    try:
        layers = attention_of(subject, strict=True)
    except (CaptureError, RuntimeError, TypeError, ValueError):
        return Guess(False, f"its attention was not all captured; {DECIDE}")
    for layer in layers:
        if layer.kind == "cross" or not layer.n_query == layer.n_key == subject.length:
            return Guess(False, f"{layer.name} attends to another sequence; {DECIDE}")
        if bool(layer.weights.isnan().any()):
            return Guess(False, f"weights of {layer.name} hold NaN; {DECIDE}")
    ahead = [
        f"{head_name(layer.index, layer.heads[head])} ({layer.name})"
        for layer in layers
        for head, causal in enumerate(_causal_heads(layer))
        if not causal
    ]
    n_heads = sum(layer.n_heads for layer in layers)
    if not ahead:
        return Guess(True, "inferred: decoder, as all its heads attend; pass kind= to decide")
    if len(ahead) == n_heads:
        return Guess(False, f"no head attends as a decoder's, all see later tokens; {DECIDE}")
    told = f"{ahead[0]} sees later tokens, {n_heads - len(ahead)} of {n_heads} heads do not"
    return Guess(False, f"{told}; {DECIDE}")


def _causal_heads(layer: LayerAttention) -> list[bool]:
    """Which heads attend as a decoder's do, give or take a mask off by one."""
    weights = layer.weights[:, :, :LOOKED_AT, :LOOKED_AT]
    carried = weights > SMALL
    # Keys that nobody sees are padding; of them nothing can be told.
    judged = carried.any(2, keepdim=True).any(1, keepdim=True).expand(carried.shape)
    places = torch.arange(weights.shape[-1], device=weights.device)
    back = places[:, None] - places
    return [_decodes(carried[:, head], judged[:, head], back) for head in range(carried.shape[1])]


def _decodes(carried: Tensor, judged: Tensor, back: Tensor) -> bool:
    def share(where: Tensor) -> float:
        cells = judged & where
        return float((carried & cells).sum() / cells.sum().clamp(min=1))

    if share(back <= -1) == 0:
        return share(back >= 1) > 0
    ahead, behind = share(back <= -2), share(back >= 2)
    return ahead <= STRAY and behind > TIMES * ahead
