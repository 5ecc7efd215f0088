"""Column sums: how much each key gets from all queries, without the matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from attncheck.attention import LayerAttention
from attncheck.attention.quiet import quiet
from attncheck.evaluate.blocked import tallies_of, valid_rows
from attncheck.evaluate.dispatch import choose, run_walk
from attncheck.evaluate.reach import reach_of
from attncheck.evaluate.tally import Tally
from attncheck.patterns.grid import Marks

__all__ = ["column_sums"]


def column_sums(layer: LayerAttention) -> Tensor:
    """Sum the weights on each key over all queries that carry attention.

    Of query and key no weights are held: memory grows with the number of queries and keys.

    Args:
        layer: Weights ``(batch, head, query, key)``, or the `QueryKey` to make them from.

    Returns:
        float64 ``(batch, head, key)``, on the layer's device.

    Example:
        >>> layer = LayerAttention(torch.eye(3)[None, None])
        >>> column_sums(layer).tolist()
        [[[1.0, 1.0, 1.0]]]
    """
    choice = choose(layer)
    with quiet(layer.device.type):
        if layer.query_key is None or choice.evaluator == "dense":
            weights = layer.weights.detach().double()
            return weights.masked_fill(~layer.valid_rows()[..., None], 0).sum(2)
        # Of a layer whose distances mean nothing none are measured; the rows that count stay.
        reach = reach_of(layer)
        bare = layer.changed(kind="cross", sighted=valid_rows(layer, reach))
        found, _ = run_walk(
            choice,
            lambda fused: [
                _columns(tally) for tally in tallies_of(bare, reach, Marks(), fused=fused)
            ],
        )
        return torch.cat(found)


def _columns(tally: Tally) -> Tensor:
    """Sums by key, with those rows that a tally leaves out as they see one key alone."""
    alone = tally.valid & (tally.reach.seen == 1)
    only = tally.reach.low.expand(alone.shape).clamp(max=tally.reach.n_key - 1)
    return tally.columns.scatter_add(-1, only, alone * tally.rows["share"].double())
