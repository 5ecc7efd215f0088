"""How far two captures of the same heads lie apart, head by head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attncheck.attention import LayerAttention
from attncheck.metrics.similarity import BLOCK_WEIGHTS, distribution_rows, row_entropy

__all__ = ["HeadDistance", "paired_distance"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class HeadDistance:
    """Distances of each head from itself in another capture, ``(head,)``, float64.

    Attributes:
        variation: Mean over rows of the total variation, the share of attention that has moved.
        divergence: Mean over rows of the Jensen-Shannon divergence, in nats (at most ln 2).
    """

    variation: Array
    divergence: Array


def paired_distance(one: LayerAttention, other: LayerAttention) -> HeadDistance:
    """Compare each head with the same head of another capture.

    Rows count that carry attention in either capture; one that does so in one only has moved all
    of its attention. NaN where a head has no such row.

    Args:
        one: Weights ``(batch, head, query, key)``.
        other: Weights of the same shape.

    Raises:
        ValueError: The shapes differ.

    Example:
        >>> import torch
        >>> one = LayerAttention(torch.eye(4)[None, None])
        >>> distance = paired_distance(one, LayerAttention(torch.eye(4).flip(0)[None, None]))
        >>> distance.variation, distance.divergence.round(4)
        (array([1.]), array([0.6931]))
    """
    if one.weights.shape != other.weights.shape:
        raise ValueError(
            f"other: shape {tuple(other.weights.shape)}, here {tuple(one.weights.shape)}"
        )
    layers = (one, other)
    valid = [layer.valid_rows().cpu() for layer in layers]
    visible = [layer.visible().expand(layer.weights.shape) for layer in layers]
    heads = one.n_heads
    variation, divergence = np.zeros(heads), np.zeros(heads)
    step = max(1, BLOCK_WEIGHTS["cpu"] // (4 * heads * one.n_key))
    for batch in range(one.batch):
        for start in range(0, one.n_query, step):
            queries = slice(start, start + step)
            p, q = (
                distribution_rows(
                    layer,
                    seen[batch, :, queries],
                    ok[batch, :, queries].to(layer.weights.device),
                    batch,
                    queries,
                )
                .double()
                .cpu()
                for layer, seen, ok in zip(layers, visible, valid, strict=True)
            )
            apart = 0.5 * (p - q).abs().sum(-1)
            both = valid[0][batch, :, queries] & valid[1][batch, :, queries]
            between = row_entropy((p + q) / 2) - (row_entropy(p) + row_entropy(q)) / 2
            one_sided = valid[0][batch, :, queries] ^ valid[1][batch, :, queries]
            variation += (apart * both + one_sided).sum(-1).numpy()
            divergence += (between.clamp_min(0) * both + np.log(2) * one_sided).sum(-1).numpy()
    rows = (valid[0] | valid[1]).sum((0, 2)).numpy()
    with np.errstate(invalid="ignore"):
        return HeadDistance(variation / rows, divergence / rows)
