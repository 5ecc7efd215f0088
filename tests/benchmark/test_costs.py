"""The sweep over lengths: what is kept, what is left out and why; and how memory grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncheck.benchmark import PLAIN, CostTable, Way, measure_costs, peak_memory, ways_of
from attncheck.plot import plot_costs


def grows(args: Sequence[Any], _: Mapping[str, Any]) -> object:
    return torch.zeros(args[0], args[0])


def test_what_would_not_fit_is_left_out_before_it_runs() -> None:
    seen: list[int] = []

    def dense(args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
        seen.append(args[0])
        return grows(args, kwargs)

    ways = {PLAIN: Way(PLAIN, grows), "maps": Way("maps", dense, holds_maps=True)}
    table = CostTable("it", "cpu", 1)
    measure_costs(table, ways, lambda n: ((n,), {}), [16, 32, 64], free=lambda: 2 * 4 * 32 * 32)
    assert max(seen) == 32
    (left,) = table.left_out
    assert (left.way, left.length) == ("maps", 64)
    assert "are free" in left.reason
    assert [cost.length for cost in table.series(PLAIN)] == [16, 32, 64]


def test_a_way_that_fails_is_left_out_from_there_on() -> None:
    def fails(args: Sequence[Any], _: Mapping[str, Any]) -> None:
        if args[0] > 8:
            raise RuntimeError("too   long")

    ways = {PLAIN: Way(PLAIN, grows), "short": Way("short", fails)}
    table = measure_costs(CostTable("it", "cpu", 1), ways, lambda n: ((n,), {}), [32, 8, 16])
    assert [(each.way, each.length, each.reason) for each in table.left_out] == [
        ("short", 16, "RuntimeError: too long")
    ]
    assert [cost.length for cost in table.series("short")] == [8]


def test_without_the_plain_forward_there_is_nothing_to_compare() -> None:
    ways = {PLAIN: Way(PLAIN, lambda *_: 1 / 0), "other": Way("other", grows)}
    table = measure_costs(CostTable("it", "cpu", 1), ways, lambda n: ((n,), {}), [8, 16])
    assert table.costs == []
    assert [each.length for each in table.left_out] == [8, 16]


class Decoder(nn.Module):
    """Two layers of causal attention, 4 heads of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Linear(64, 192) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.project:
            query, key, value = layer(x).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + mixed.transpose(1, 2).flatten(2)
        return x


def test_the_memory_of_a_profile_is_linear_in_length() -> None:
    torch.manual_seed(0)
    ways, _ = ways_of(Decoder().eval())
    peaks: dict[str, list[int]] = {name: [] for name in ("capture", "profile")}
    for n in (1024, 2048):
        x = torch.randn(1, n, 64)
        for name, found in peaks.items():
            peak = peak_memory(lambda name=name, x=x: ways[name].run((x,), {}))  # type: ignore[misc]
            assert peak is not None
            found.append(peak)
    assert peaks["profile"][1] < 2.3 * peaks["profile"][0]
    assert peaks["capture"][1] > 3.3 * peaks["capture"][0]


def test_a_picture_needs_something_to_draw() -> None:
    with pytest.raises(ValueError, match="holds no costs"):
        plot_costs(CostTable("it", "cpu", 5))
