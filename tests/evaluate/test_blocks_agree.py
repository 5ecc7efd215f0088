"""Blocks of long sequences: every evaluator cuts them at the same positions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from attncheck.attention import LayerAttention, QueryKey
from attncheck.evaluate.blocked import profile_blocked
from attncheck.evaluate.dense import profile_layer
from attncheck.evaluate.given import profile_given
from attncheck.patterns.refine import move_cuts
from tests.evaluate.agreement import with_weights

SIZE = 16


def of_segments(n: int, n_query: int, cuts: list[list[int]], causal: bool, extra: str) -> QueryKey:
    """Query and key of heads that keep to segments, with some noise; each two share keys."""
    queries, keys = [], []
    for own in cuts:
        number = (torch.arange(n)[:, None] >= torch.tensor(own)).sum(-1)
        code = torch.eye(SIZE)[number] * math.sqrt(8)
        keys.append(code + torch.randn(n, SIZE) / 3)
        queries += [code + torch.randn(n, SIZE) / 3 for _ in range(2)]
    seen = torch.ones(n_query, n, dtype=torch.bool).tril(n - n_query)
    heads = len(queries)
    return QueryKey(
        torch.stack(queries)[None, :, n - n_query :],
        torch.stack(keys)[None],
        tuple(head // 2 for head in range(heads)),
        0.5,
        softcap=6.0 if extra == "softcap" else None,
        bias=torch.randn(1, heads, n_query, n) / 3 if extra == "bias" else None,
        sinks=torch.randn(1, heads, 1, 1) if extra == "sinks" else None,
        mask=seen[None, None] if causal else None,
    )


@pytest.mark.parametrize("extra", ["", "softcap", "bias", "sinks"])
@pytest.mark.parametrize(
    ("n", "n_query", "causal"),
    [(517, 517, False), (517, 517, True), (700, 700, True), (1100, 600, True)],
)
def test_blocks_are_the_same_whoever_measures(
    n: int, n_query: int, causal: bool, extra: str
) -> None:
    torch.manual_seed(n)
    cuts = [[n - n_query + 131, n - 101], [n - 303], [n - 90, n - 47, n - 21], [n]]
    record = of_segments(n, n_query, cuts, causal, extra)
    layer = LayerAttention(record, kind="self", causal=causal)
    weights, sink_mass = record.weights()
    given = LayerAttention(weights, kind="self", causal=causal, sink_mass=sink_mass)
    exact = profile_layer(with_weights(layer))
    everybody = {
        "blocked": profile_blocked(layer, fused=False),
        "fused": profile_blocked(layer, fused=True),
        "dense": profile_layer(given),
        "given": profile_given(given),
    }
    for name, found in everybody.items():
        assert found is not None
        for part in ("mass", "lift"):
            measured, expected = (one.value(f"block.{part}") for one in (found, exact))
            np.testing.assert_allclose(measured, expected, atol=1e-5, err_msg=name)
    assert (exact.value("block.lift")[:4] > 0.3).all()


@pytest.mark.parametrize("shift", [0, 40])
@pytest.mark.parametrize("causal", [False, True])
def test_a_cut_moves_to_where_most_lies_inside(shift: int, causal: bool) -> None:
    """Against a plain loop over every position within a step, over several chunks of keys."""
    torch.manual_seed(0)
    n, step = 1300, 8
    held = torch.randn(2, n, n, dtype=torch.float64)
    held = (held.tril() if causal else held)[:, shift:]

    def inside(cuts: list[int]) -> Tensor:
        number = (torch.arange(n)[:, None] >= torch.tensor(cuts)).sum(-1)
        return (held * (number[shift:, None] == number)).sum((-1, -2))

    first, second = 203, 1187
    best = max(range(first - 7, first + 8), key=lambda p: float(inside([p, second])[0]))
    last = max(range(second - 7, second + 8), key=lambda p: float(inside([best, p])[0]))
    moved = move_cuts(
        [first, second], n - shift, n, step, lambda rows, keys: held[:, rows, keys], 2
    )
    assert moved.cuts == (best, last)
    torch.testing.assert_close(moved.added, inside([best, last]) - inside([first, second]))
