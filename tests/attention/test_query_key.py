"""`QueryKey` against float64 loops, and layers that make their weights from it."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from attncheck.attention import AttentionMaps, LayerAttention, QueryKey, as_attention

HEADS, N_QUERY, N_KEY, SIZE = 4, 5, 6, 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


PLAIN = QueryKey(normal(2, HEADS, N_QUERY, SIZE), normal(2, 2, N_KEY, SIZE), (0, 0, 1, 1), 0.7)
ADDITIVE = (
    normal(2, 1, N_QUERY, N_KEY, seed=3)
    .mul(9)
    .masked_fill(normal(2, 1, N_QUERY, N_KEY, seed=4) > 1, -math.inf)
)
RECORDS = {
    "plain": PLAIN,
    "order of heads": replace(PLAIN, key_heads=(1, 0, 1, 1)),
    "softcap": replace(PLAIN, scale=3.0, softcap=2.0),
    "bias": replace(PLAIN, bias=normal(1, HEADS, N_QUERY, N_KEY, seed=5).double()),
    "causal": replace(PLAIN, causal=True),
    "rows": replace(PLAIN, causal=True, rows=torch.tensor([4, 0, 5, 2, 2])),
    "bool mask": replace(PLAIN, mask=normal(2, 1, N_QUERY, N_KEY, seed=6) > 0.3),
    "padding": replace(PLAIN, mask=torch.tensor([1, 1, 1, 0, 1, 0]).bool()[None, None, None]),
    "additive mask": replace(PLAIN, mask=ADDITIVE),
    "blind row": replace(PLAIN, mask=torch.arange(N_QUERY).view(1, 1, N_QUERY, 1) > 0),
    "sinks": replace(PLAIN, sinks=normal(1, HEADS, 1, 1, seed=7)),
    "sink of each row": replace(PLAIN, sinks=normal(2, HEADS, N_QUERY, 1, seed=8), causal=True),
    "one sequence's key": replace(PLAIN, key=PLAIN.key[:1]),
    "half": replace(PLAIN, query=PLAIN.query.half(), key=PLAIN.key.half()),
    "all": QueryKey(
        PLAIN.query,
        PLAIN.key[:, :1],
        (0, 0, 0, 0),
        1.3,
        softcap=1.5,
        bias=normal(1, HEADS, N_QUERY, N_KEY, seed=9),
        mask=ADDITIVE[:1],
        causal=True,
        rows=torch.tensor([1, 2, 3, 4, 5]),
        sinks=normal(1, HEADS, 1, 1, seed=10),
    ),
}


def by_loops(record: QueryKey) -> tuple[np.ndarray, np.ndarray]:
    """Weights and sink mass in float64, one score at a time."""
    batch = max(len(record.query), len(record.key))
    weights = np.zeros((batch, HEADS, N_QUERY, N_KEY))
    sink_mass = np.zeros((batch, HEADS, N_QUERY))

    def entry(tensor: Tensor, *place: int) -> float:
        cut = [0 if size == 1 else at for size, at in zip(tensor.shape, place, strict=True)]
        return float(tensor[tuple(cut)])

    for b, h, i in np.ndindex(batch, HEADS, N_QUERY):
        row = i if record.rows is None else int(record.rows[i])
        parts = {}
        for j in range(N_KEY):
            query = record.query[b if len(record.query) > 1 else 0, h, i].double()
            key = record.key[b if len(record.key) > 1 else 0, record.key_heads[h], j].double()
            score = record.scale * float(query @ key)
            if record.softcap is not None:
                score = record.softcap * math.tanh(score / record.softcap)
            if record.bias is not None:
                score += entry(record.bias, b, h, i, j)
            if record.causal and j > row:
                continue
            if record.mask is not None:
                given = entry(record.mask, b, h, i, j)
                if record.mask.dtype == torch.bool:
                    score += 0 if given else -math.inf
                else:
                    score += given
            parts[j] = math.exp(score)
        sink = math.exp(entry(record.sinks, b, h, i, 0)) if record.sinks is not None else 0
        total = sum(parts.values()) + sink
        for j, part in parts.items():
            weights[b, h, i, j] = part / total if total else 0
        sink_mass[b, h, i] = sink / total if total else 0
    return weights, sink_mass


@pytest.mark.parametrize("case", RECORDS)
def test_weights_are_those_of_loops(case: str) -> None:
    record = RECORDS[case]
    weights, sink_mass = by_loops(record)
    made, made_sink = record.weights()
    assert made.shape == record.shape
    assert made.dtype == record.weights_dtype == torch.float32
    np.testing.assert_allclose(made.double(), weights, atol=2e-6)
    assert (made_sink is None) == (record.sinks is None)
    if made_sink is not None:
        np.testing.assert_allclose(made_sink.double(), sink_mass, atol=2e-6)


@pytest.mark.parametrize("case", RECORDS)
@pytest.mark.parametrize("queries", [slice(1, 4), torch.tensor([4, 0])], ids=["slice", "numbers"])
def test_a_block_of_queries_is_the_same_block_of_all(case: str, queries: slice | Tensor) -> None:
    record = RECORDS[case]
    whole, whole_sink = record.weights()
    part, part_sink = record.weights(queries)
    torch.testing.assert_close(part, whole[:, :, queries], atol=1e-6, rtol=0)
    if whole_sink is not None and part_sink is not None:
        torch.testing.assert_close(part_sink, whole_sink[:, :, queries], atol=1e-6, rtol=0)
    torch.testing.assert_close(record.scores(queries), record.scores()[:, :, queries])


def test_a_layer_makes_its_weights_when_they_are_read() -> None:
    layer = LayerAttention(replace(PLAIN, lasting=False))
    assert layer.shape == (2, HEADS, N_QUERY, N_KEY)
    assert layer.query_key is not None
    layer.visible(), layer.query_positions(), repr(AttentionMaps([layer]))
    assert layer.query_key is not None, "metadata needs no weights"
    assert layer.weights is layer.weights
    torch.testing.assert_close(layer.weights, PLAIN.weights()[0])
    assert layer.query_key is None, "the weights took its place"


def test_a_lasting_record_holds_no_weights_that_nobody_holds() -> None:
    layer = LayerAttention(PLAIN)
    held = layer.weights
    assert layer.weights is held, "made once while somebody holds them"
    alive = weakref.ref(held)
    del held
    gc.collect()
    assert alive() is None
    assert layer.query_key is PLAIN
    torch.testing.assert_close(layer.weights, PLAIN.weights()[0])


def test_sink_mass_comes_with_the_weights() -> None:
    for lasting in (True, False):
        layer = LayerAttention(replace(RECORDS["sinks"], lasting=lasting))
        assert layer.sink_mass is not None
        total = layer.weights.sum(-1) + layer.sink_mass
        torch.testing.assert_close(total, torch.ones_like(total))


def test_layers_are_made_outside_of_gradients_and_autocast() -> None:
    layer = LayerAttention(PLAIN)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        made = layer.weights
    assert made.dtype == torch.float32
    assert not made.is_inference()
    torch.testing.assert_close(made, PLAIN.weights()[0])


def test_layers_travel_with_their_record() -> None:
    layer = LayerAttention(PLAIN, name="attn")
    expected = layer.weights
    for travelled in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), copy.copy(layer)):
        assert travelled.query_key is not None
        torch.testing.assert_close(travelled.weights, expected)
    moved = AttentionMaps([layer]).to(torch.float16)
    assert moved.layers[0].query_key is not None
    assert moved[0].dtype == torch.float16
    torch.testing.assert_close(moved[0], expected.half())


def test_the_front_door_leaves_a_record_a_record() -> None:
    layer = LayerAttention(PLAIN)
    opened = as_attention(layer, mask=[1, 1, 1, 1, 1, 0], causal=False, require="shape")
    assert opened.layers[0].query_key is PLAIN


def test_a_record_is_shown_by_its_shapes_and_makes_no_weights() -> None:
    whole = RECORDS["all"]
    assert repr(whole) == (
        "QueryKey(query (2, 4, 5, 3) float32, key (2, 1, 6, 3) float32, bias (1, 4, 5, 6) float32, "
        "mask (1, 1, 5, 6) float32, rows (5,) int64, sinks (1, 4, 1, 1) float32, scale 1.3, "
        "softcap 1.5, causal)"
    )
    layer = LayerAttention(replace(PLAIN, lasting=False), name="attn")  # type: ignore[arg-type]
    assert repr(layer) == "LayerAttention('attn', (2, 4, 5, 6) float32, unknown, given)"
    assert layer.query_key is not None


@pytest.mark.parametrize(("n_query", "n_key"), [(6, 6), (3, 6), (1, 6)])
@pytest.mark.parametrize("padded", [False, True])
def test_a_causal_layer_makes_causal_weights(n_query: int, n_key: int, padded: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 2, n_query, 4, generator=generator)
    key = torch.randn(1, 2, n_key, 4, generator=generator)
    mask = torch.tensor([True] * 5 + [False])[None, None, None] if padded else None
    layer = LayerAttention(QueryKey(query, key, (0, 1), 0.5, mask=mask), mask=mask, causal=True)
    scores = (0.5 * query @ key.mT).masked_fill(~layer.visible(), -torch.inf)
    torch.testing.assert_close(layer.weights, torch.softmax(scores, -1))
