"""What attention is: in float64, by plain arithmetic, with no kernel of torch's own attention.

The semantics are the documented ones: ``is_causal`` is aligned top-left (query ``i`` sees keys
``0 .. i``), a boolean mask says who takes part, a float mask is added, both together mean both, a
row that sees no key gives zeros, and head ``h`` of the query reads key-value head
``h // (n_heads / n_kv_heads)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attncheck.conformance.case import Inputs

__all__ = ["Rules", "attend", "scores_of", "softmax_of"]


@dataclass(frozen=True)
class Rules:
    """What an extension changes in the arithmetic; plain attention changes nothing.

    Attributes:
        score: Turns scaled scores ``(..., head, query, key)`` into what is masked and normalised.
        window: Keys that a query sees on its left and right; ``None`` for no limit.
        align: ``"top-left"`` or ``"bottom-right"``: the diagonal of causal masks and windows.
        causal: Whether every call is causal, without being asked.
        sinks: Gives, for a number of query heads, a logit for each, that takes part in the
            normaliser and carries no value.
        call: Further arguments of a call, as source text, for scripts.
        lines: Lines that change the scores ``s`` in a script; None where none can be written.
    """

    score: Callable[[Tensor], Tensor] | None = None
    window: tuple[int | None, int | None] = (None, None)
    align: str = "top-left"
    causal: bool = False
    sinks: Callable[[int], Tensor] | None = None
    call: str = ""
    lines: tuple[str, ...] | None = ()


PLAIN = Rules()


def visible_pairs(n_query: int, n_key: int, causal: bool, rules: Rules) -> Tensor | None:
    """Return who may see whom before any mask, ``(query, key)`` bool; None for everyone."""
    if not causal and rules.window == (None, None):
        return None
    shift = n_key - n_query if rules.align == "bottom-right" else 0
    distance = torch.arange(n_key)[None, :] - torch.arange(n_query)[:, None] - shift
    left, right = rules.window
    seen = torch.ones(n_query, n_key, dtype=torch.bool)
    if causal:
        seen &= distance <= 0
    if left is not None:
        seen &= distance >= -left
    if right is not None:
        seen &= distance <= right
    return seen


def scores_of(inputs: Inputs, dtype: torch.dtype, rules: Rules = PLAIN) -> tuple[Tensor, Tensor]:
    """Return masked scores ``(..., head, query, key)`` and the values, a head for each query head.

    Hidden positions hold ``-inf``.
    """
    query, key, value = (x.to(dtype) for x in (inputs.query, inputs.key, inputs.value))
    if inputs.flags.get("enable_gqa"):
        group = query.shape[-3] // max(key.shape[-3], 1)
        key, value = key.repeat_interleave(group, -3), value.repeat_interleave(group, -3)
    scale = inputs.flags.get("scale")
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    scores = (query * scale) @ key.mT
    if rules.score is not None:
        scores = rules.score(scores)
    mask = inputs.mask
    if mask is not None and mask.dtype != torch.bool:
        scores = scores + mask.to(dtype)
    causal = rules.causal or bool(inputs.flags.get("is_causal"))
    seen = visible_pairs(query.shape[-2], key.shape[-2], causal, rules)
    if seen is not None:
        scores = scores.masked_fill(~seen.to(scores.device), -torch.inf)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores, value


def softmax_of(scores: Tensor, sinks: Tensor | None = None) -> Tensor:
    """Return weights: softmax over keys; a row that sees nothing is zero."""
    if scores.shape[-1] == 0:
        return scores
    peak = scores.detach().amax(-1, keepdim=True)
    if sinks is not None:
        peak = torch.maximum(peak, sinks.to(scores.dtype)[:, None, None].detach())
    powers = torch.exp(scores - peak.masked_fill(peak == -torch.inf, 0))
    total = powers.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + torch.exp(sinks.to(scores.dtype)[:, None, None] - peak)
    return powers / total.masked_fill(total == 0, 1)


def attend(
    inputs: Inputs, dtype: torch.dtype = torch.float64, rules: Rules = PLAIN
) -> tuple[Tensor, Tensor, Tensor]:
    """Return output, weights and masked scores of attention, computed in ``dtype``.

    Args:
        inputs: The tensors and flags of a call.
        dtype: float64 is the oracle; the inputs' own dtype is the same-precision reference.
        rules: What an extension changes.
    """
    scores, value = scores_of(inputs, dtype, rules)
    sinks = None if rules.sinks is None else rules.sinks(scores.shape[-3]).to(scores.device)
    weights = softmax_of(scores, sinks)
    return weights @ value, weights, scores
