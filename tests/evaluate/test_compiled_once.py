"""Each loop is compiled once: whatever a layer is like, its arrays lie in memory the same way.

What was compiled for another order sums a row in another order, and which of several a process
takes depends on what it did before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from attncheck.attention import LayerAttention, QueryKey
from attncheck.evaluate import profile_given
from attncheck.evaluate.blocked import profile_blocked
from attncheck.metrics import METRICS

numba = pytest.importorskip("numba")
loops = pytest.importorskip("attncheck.compiled.loops")
sums = pytest.importorskip("attncheck.compiled.sums")
measures = pytest.importorskip("attncheck.compiled.measures")

N = 160


def record(batch: int, heads: int, **options: Any) -> LayerAttention:
    torch.manual_seed(0)
    query, key = torch.randn(2, batch, heads, N, 8)
    made = QueryKey(query, key, tuple(range(heads)), 8**-0.5, **{"causal": True, **options})
    return LayerAttention(made, kind="self", causal=made.causal)


def padding(batch: int, heads: int) -> torch.Tensor:
    place = torch.arange(N)
    starts = torch.arange(batch * heads).view(batch, heads, 1, 1)
    return (place[:, None] >= place) & (place >= starts)


LAYERS: dict[str, Callable[[], LayerAttention]] = {
    "causal": lambda: record(1, 4),
    "one head": lambda: record(1, 1),
    "batch": lambda: record(3, 2),
    "bidirectional": lambda: record(2, 3, causal=False),
    "padding": lambda: record(2, 3, causal=False, mask=padding(2, 1)),
    "padding by head": lambda: record(2, 3, causal=False, mask=padding(2, 3)),
    "sinks": lambda: record(2, 3, sinks=torch.randn(1, 3, 1, 1)),
}


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], set[Any]]:
    """Note the types, as numba sees them, with which a loop is called."""

    def spy_on(name: str) -> set[Any]:
        seen: set[Any] = set()
        module = {"sum_rows": sums, "measure_rows": measures}.get(name, loops)
        original = getattr(module, name)

        def spy(*args: Any) -> Any:
            seen.add(tuple(map(numba.typeof, args)))
            return original(*args)

        monkeypatch.setattr(module, name, spy)
        return seen

    return spy_on


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_a_loop_over_scores(spied: Callable[[str], set[Any]], threads: int) -> None:
    seen = spied("read_scores")
    for make in LAYERS.values():
        profile_blocked(make(), fused=True)
        profile_blocked(make(), torch.arange(N) % 7, fused=True)
    assert len(seen) == 1, seen


def test_loops_over_weights(spied: Callable[[str], set[Any]], threads: int) -> None:
    profiles, measured = spied("read_weights"), spied("measure_rows")
    for make in LAYERS.values():
        layer = make()
        weights = layer.weights
        other = weights.transpose(0, 1).contiguous().transpose(0, 1)
        for given in (weights, weights.half(), other):
            held = replace(layer, weights=given, sink_mass=None)
            profile_given(held, torch.arange(N) % 7)
            METRICS["entropy"].rows(replace(held, weights=given.repeat(1, 16, 1, 1), heads=()))
    assert len(profiles) == 1, profiles
    assert len(measured) == 1, measured


def test_a_loop_over_what_rows_add_up_to(spied: Callable[[str], set[Any]], threads: int) -> None:
    seen = spied("sum_rows")
    for make in LAYERS.values():
        for tokens in (None, torch.arange(N) % 7):
            profile_blocked(make(), tokens, fused=True)
    assert len(seen) == 1, seen
    for make in LAYERS.values():
        layer = make()
        profile_given(replace(layer, weights=layer.weights), torch.arange(N) % 7)
    assert len(seen) == 2, "once more in float64, for given weights"
