"""Plain float64 versions of what the models compute, written from their definition."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from attncheck.models import TinyTransformer

Array = NDArray[np.float64]


def layer_norm(x: Array, scale: Array, shift: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + shift


def causal_softmax(scores: Array) -> Array:
    weights = np.zeros_like(scores)
    for i, row in enumerate(scores):
        seen = np.exp(row[: i + 1] - row[: i + 1].max())
        weights[i, : i + 1] = seen / seen.sum()
    return weights


def tiny_forward(
    model: TinyTransformer, ids: list[int], silenced: tuple[str, ...] = ()
) -> tuple[dict[str, Array], Array]:
    """Weights by head name and logits of one sequence."""
    state = {k: v.double().numpy() for k, v in model.state_dict().items()}
    x = state["embed.weight"][ids] + state["position.weight"][: len(ids)]
    width = x.shape[1]
    weights = {}
    for layer in range(2):
        normed = layer_norm(x, state[f"norms.{layer}.weight"], state[f"norms.{layer}.bias"])
        projected = normed @ state[f"attention.{layer}.query_key_value.weight"].T
        mixed = np.zeros_like(x)
        for head in range(2):
            name, at = f"L{layer}H{head}", head * width // 2
            query, key, value = (
                projected[:, start + at : start + at + width // 2]
                for start in (0, width, 2 * width)
            )
            weights[name] = causal_softmax(query @ key.T / math.sqrt(width // 2))
            if name not in silenced:
                mixed[:, at : at + width // 2] = weights[name] @ value
        x = x + mixed @ state[f"attention.{layer}.output.weight"].T
    normed = layer_norm(x, state["final_norm.weight"], state["final_norm.bias"])
    return weights, normed @ state["unembed.weight"].T


def previous_token_mass(weights: Array) -> float:
    return sum(float(weights[i, i - 1]) for i in range(1, len(weights))) / (len(weights) - 1)


def mass_by_tokens(weights: Array, ids: list[int], before: int) -> float:
    """Mean mass on keys j < i with t[j - before] == t[i]: 0 duplicate token, 1 induction.

    Keys whose template position would be the query itself are left out, and so are queries
    without any target.
    """
    rows = []
    for i in range(len(ids)):
        targets = [
            j
            for j in range(before, i + 1)
            if ids[j - before] == ids[i] and j - before != i and j != i
        ]
        if targets:
            rows.append(sum(float(weights[i, j]) for j in targets))
    return sum(rows) / len(rows)
