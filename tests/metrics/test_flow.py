"""Flow against every cut of tiny graphs, and against another library's maximum flow."""

from __future__ import annotations

import itertools
from typing import Any

import networkx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from attncheck.attention import LayerAttention
from attncheck.metrics import attention_flow, attention_rollout
from tests.metrics.test_rollout import causal_uniform, random_stack


def capacities(stack: torch.Tensor) -> dict[tuple[tuple[int, int], tuple[int, int]], float]:
    """Edges from (height, position) one layer down, of the head mean and half a residual."""
    layers, _, heads, n, _ = stack.shape
    edges = {}
    for layer, i, j in itertools.product(range(layers), range(n), range(n)):
        mean = sum(stack[layer, 0, h, i, j].item() for h in range(heads)) / heads
        edges[(layer + 1, i), (layer, j)] = 0.5 * mean + 0.5 * (i == j)
    return edges


def smallest_cut(stack: torch.Tensor, start: int, end: int) -> float:
    """Try every set of nodes on the side of the start: maximum flow is minimum cut."""
    layers, n = stack.shape[0], stack.shape[-1]
    edges = capacities(stack)
    source, sink = (layers, start), (0, end)
    nodes = [(h, p) for h in range(layers + 1) for p in range(n) if (h, p) not in (source, sink)]
    best = float("inf")
    for chosen in itertools.product([False, True], repeat=len(nodes)):
        side = {source} | {node for node, taken in zip(nodes, chosen, strict=True) if taken}
        cut = sum(c for (a, b), c in edges.items() if a in side and b not in side)
        best = min(best, cut)
    return best


@settings(max_examples=8)
@given(shape=st.sampled_from([(1, 3), (2, 2), (3, 2), (2, 3)]), seed=st.integers(0, 99))
def test_flow_is_the_smallest_cut(shape: tuple[int, int], seed: int) -> None:
    layers, n = shape
    stack = random_stack(layers, 1, 2, n, seed)
    found = attention_flow(stack, causal=False)[0]
    for start in range(n):
        for end in range(n):
            assert found[start, end].item() == pytest.approx(
                smallest_cut(stack, start, end), abs=1e-7
            )


@settings(max_examples=15)
@given(layers=st.integers(1, 4), n=st.integers(1, 6), causal=st.booleans(), seed=st.integers(0, 99))
def test_flow_equals_networkx(layers: int, n: int, causal: bool, seed: int) -> None:
    stack = random_stack(layers, 1, 2, n, seed)
    if causal:
        stack = stack.tril() / stack.tril().sum(-1, keepdim=True)
    graph = networkx.DiGraph()
    for (above, below), capacity in capacities(stack).items():
        graph.add_edge(above, below, capacity=capacity)
    found = attention_flow(stack)[0]
    for start in range(n):
        for end in range(n):
            expected = networkx.maximum_flow_value(graph, (layers, start), (0, end))
            assert found[start, end].item() == pytest.approx(expected, abs=layers * n * n / 2**31)


def test_one_layer_flows_what_it_attends() -> None:
    stack = random_stack(1, 2, 3, 5, 4)
    assert_close(attention_flow(stack), attention_rollout(stack), atol=1e-8, rtol=0)


def test_flow_is_at_least_rollout() -> None:
    """Rollout splits the very network that each flow has to itself."""
    stack = random_stack(4, 1, 2, 5, 5)
    assert bool((attention_flow(stack) >= attention_rollout(stack) - 1e-7).all())


def test_causal_flow_never_reaches_later_positions() -> None:
    flow = attention_flow([causal_uniform(5)] * 3)[0]
    assert not flow.triu(1).any()
    assert bool((flow.tril() > 0).sum() == 15)


def test_chosen_queries_batch_and_progress() -> None:
    stack = random_stack(2, 2, 2, 4, 6)
    seen: list[tuple[int, int]] = []
    found = attention_flow(
        stack, queries=[3, 1], progress=lambda done, total: seen.append((done, total))
    )
    assert torch.equal(found, attention_flow(stack)[:, [3, 1]])
    assert seen == [(4, 16), (8, 16), (12, 16), (16, 16)]


def test_an_interrupt_ends_it() -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attention_flow(random_stack(2, 1, 1, 4, 7), progress=stop)


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="queries: 4 is no position of a sequence of 4"):
        attention_flow(torch.eye(4), queries=[4])
    with pytest.raises(ValueError, match="attention_flow follows one sequence"):
        attention_flow(torch.full((2, 4), 0.25))
    with pytest.raises(ValueError, match="is cross-attention"):
        attention_flow(LayerAttention(torch.eye(3)[None, None], kind="cross"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"queries": 3}, "queries: 3 is int; expected a list of positions"),
        ({"queries": "12"}, "queries: '12' is str; expected a list"),
        ({"queries": [1, 1.5]}, "queries: 1.5 is float; expected positions"),
        ({"queries": [True]}, "queries: True is bool"),
        ({"progress": True}, r"progress: True; expected a function \(done, total\)"),
        ({"residual": None}, "residual: got NoneType; expected a share, 0 to 1"),
    ],
)
def test_options_of_another_kind_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=f"^{words}"):
        attention_flow(torch.eye(4), **options)


def test_queries_may_be_numbers_of_any_library() -> None:
    found = attention_flow(torch.eye(4), queries=torch.tensor([2, 0]))
    assert_close(found, attention_flow(torch.eye(4), queries=[2, 0]))
