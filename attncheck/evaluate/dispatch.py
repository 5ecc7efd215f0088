"""Which evaluator measures a layer, and why: the one place where that is decided.

=========  ================================================  =========================
evaluator  chosen where                                      largest thing it holds
=========  ================================================  =========================
fused      query and key of the whole call are held, the     a block of 64 query rows
           layer is large, numba is installed on a CPU,      of one head; on a GPU a tile
           triton on a GPU                                   in registers
blocked    query and key of the whole call are held          a block of 64 query rows
dense      only weights are held, queries were left out, or  the weights themselves,
           a measure is asked for that sorts whole rows      ``query x key`` a head
=========  ================================================  =========================

Fused and blocked find the same; where fused reads given weights, it is told with dense.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Final, Literal, TypeVar

from attncheck.attention import LayerAttention
from attncheck.attention.arguments import words
from attncheck.attention.light import threads_for
from attncheck.compiled import MANY, SMALL
from attncheck.evaluate import dense
from attncheck.evaluate.blocked import profile_blocked
from attncheck.evaluate.fused import unfit
from attncheck.evaluate.given import profile_given
from attncheck.evaluate.tiles import unfit_for_tiles
from attncheck.kernels.launch import KernelError
from attncheck.profile import LayerProfile

__all__ = ["Choice", "choose", "profile_layer", "run_walk"]

Result = TypeVar("Result")

LEAST: Final = {"cpu": MANY}
"""Weights of a layer that the fused evaluator is for, by device; `SMALL` on others."""


@dataclass(frozen=True)
class Choice:
    """An evaluator, and why it was chosen.

    Example:
        >>> print(Choice("dense", "the model makes its own weights"))
        dense: the model makes its own weights
    """

    evaluator: Literal["dense", "blocked", "fused"]
    why: str

    def __str__(self) -> str:
        return f"{self.evaluator}: {self.why}"


def choose(layer: LayerAttention, also: Any = ()) -> Choice:
    """Choose the evaluator of a layer.

    Args:
        layer: The layer; no weights are made.
        also: Measures beyond the usual ones, which sort rows.

    Example:
        >>> import torch
        >>> choose(LayerAttention(torch.eye(4)[None, None])).evaluator
        'dense'
    """
    asked = words(also, "also", "names of measures")
    if asked:
        return Choice("dense", f"{', '.join(asked)}: sorts whole rows of weights")
    fit = unfit_for_tiles if layer.device.type == "cuda" else unfit
    least = LEAST.get(layer.device.type, SMALL)
    why_not = "the layer is small" if prod(layer.shape) < least else fit(layer)
    if layer.query_key is None:
        if why_not is None:
            return Choice("fused", "weights are held; each is read once")
        return Choice("dense", f"weights are held, no query and key; not fused: {why_not}")
    if layer.queries:
        return Choice("dense", "only some queries of the call are held")
    if why_not is None:
        return Choice("fused", "query and key are held; each row is read once")
    return Choice("blocked", f"query and key are held; not fused: {why_not}")


def run_walk(choice: Choice, walk: Callable[[bool], Result]) -> tuple[Result, Choice]:
    """Walk a layer's query and key, fused where that was chosen and can be; else blocked.

    Args:
        choice: Fused or blocked.
        walk: Walks, fused if its argument is true.

    Returns:
        What the walk found, and what was used in the end.

    Example:
        >>> run_walk(Choice("blocked", "no numba"), lambda fused: fused)[0]
        False
    """
    if choice.evaluator != "fused":
        return walk(False), choice
    try:
        return walk(True), choice
    except KernelError as error:
        instead = Choice("blocked", f"query and key are held; not fused: {error}")
    return walk(False), instead


def profile_layer(layer: LayerAttention, tokens: Any = None, **options: Any) -> LayerProfile:
    """Profile the heads of one layer, with the evaluator that `choose` names.

    ``profile.evaluator`` says which it was, and why.

    Args:
        layer: Weights ``(batch, head, query, key)``, or the `QueryKey` to make them from, with
            mask and causality.
        tokens: Strings or ids, ``(key,)`` or ``(batch, key)``; with them token patterns
            (induction, duplicate token, delimiter) are scored. Cross-attention ignores them.
        options: ``segment_ids``: segment of each key, ``(key,)`` or ``(batch, key)``.
            ``delimiters``: tokens that count as delimiters; default: punctuation and separators.
            Others are those of the dense evaluator alone.

    Raises:
        ValueError: Tokens or segments of the wrong length.

    Example:
        >>> import torch
        >>> profile = profile_layer(LayerAttention(torch.eye(8)[None, None]))
        >>> profile.value("max_weight"), profile.counts["entropy"]
        (array([1.]), array([8]))
        >>> profile.evaluator
        'dense: weights are held, no query and key; not fused: the layer is small'
    """
    choice = choose(layer, options.get("also", ()))
    fused = choice.evaluator == "fused"
    with nullcontext() if fused else threads_for(layer.shape, layer.device.type):
        return _profile(layer, choice, tokens, options)


def _profile(
    layer: LayerAttention, choice: Choice, tokens: Any, options: dict[str, Any]
) -> LayerProfile:
    """Profile a layer with the evaluator chosen, or with another where that one can't."""
    found = None
    if choice.evaluator != "dense":
        options.pop("also", None)
        if layer.query_key is not None:
            found, choice = run_walk(
                choice, lambda fused: profile_blocked(layer, tokens, fused=fused, **options)
            )
        else:
            found = profile_given(layer, tokens, **options)
            if found is None:
                choice = Choice("dense", "weights are held; not fused: some need a second look")
    if found is None:
        found = dense.profile_layer(layer, tokens, **options)
    return replace(found, evaluator=found.evaluator or str(choice))
