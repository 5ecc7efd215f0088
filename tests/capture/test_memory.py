"""A capture that would not fit is refused before it allocates, and says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attncheck import AttentionExtractor, CaptureError
from attncheck.attention import QueryKey
from attncheck.capture import memory
from tests.capture.reference import Heads, stack

X = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(1))
LAYER = 2 * 4 * 64 * 64 * 4
"""Bytes of one layer's weights."""


def causal(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def test_it_refuses_at_the_first_layer_and_makes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    weights = QueryKey.weights
    monkeypatch.setattr(QueryKey, "weights", lambda *args: made.append(args) or weights(*args))
    model = stack(causal, 5)
    expected = model(X)
    extractor = AttentionExtractor(model, memory_limit=6 * LAYER)
    with pytest.raises(CaptureError) as refused, extractor:
        output = model(X)
    text = str(refused.value)
    assert not made
    assert "needs about 896 KiB on cpu, 5 layers of 2 x 4 x 64 x 64 float32 weights" in text
    assert "Refused at 0, before allocating" in text
    for way_out in ("store='profile'", "store='qk'", "queries=", "heads=", "layers=", "dtype="):
        assert way_out in text
    assert output.equal(expected), "the model ran on"
    assert model(X).equal(expected)
    with pytest.raises(CaptureError, match="the capture failed"):
        extractor.maps  # noqa: B018
    assert len(AttentionExtractor(model, memory_limit=7 * LAYER).get_attention(X)) == 5


@pytest.mark.parametrize(
    ("options", "need"),
    [
        ({}, 5 * LAYER + 2 * LAYER),
        ({"layers": [1, 3]}, 2 * LAYER + 2 * LAYER),
        ({"layers": [-1]}, LAYER + 2 * LAYER),
        ({"layers": "2"}, LAYER + 2 * LAYER),
        ({"heads": 0}, (5 + 2) * LAYER // 4),
        ({"queries": [5, 6]}, (5 + 2) * LAYER // 32),
        ({"dtype": torch.float16}, 5 * LAYER // 2 + 2 * LAYER),
        ({"store": "qk"}, 5 * 2 * 2 * 64 * 16 * 4),
        ({"store": "profile", "queries": [5, 6]}, 2 * LAYER // 32),
        ({"on_layer": lambda layer: None}, 2 * LAYER),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_the_estimate_is_what_will_be_held(options: dict, need: int) -> None:
    model = stack(causal, 5)
    AttentionExtractor(model, memory_limit=need, **options).watch(X)
    with pytest.raises(CaptureError, match="Ways out"):
        AttentionExtractor(model, memory_limit=need - 1, **options).watch(X)


def test_calls_add_up() -> None:
    model = stack(causal, 2)
    extractor = AttentionExtractor(model, memory_limit=6 * LAYER)
    extractor.register_hooks()
    model(X)
    model(X)
    assert len(extractor.maps) == 4
    model(X)
    with pytest.raises(CaptureError, match="6 layers of"):
        extractor.maps  # noqa: B018
    extractor.clear_hooks()


def test_the_default_is_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SMALL", 0)
    monkeypatch.setattr(memory, "free_memory", lambda device: 8 * LAYER)
    model = stack(causal, 5)
    with pytest.raises(CaptureError, match=r"1 MiB are free, of which memory_limit allows 80%"):
        AttentionExtractor(model).get_attention(X)
    assert len(AttentionExtractor(model, memory_limit=0.9).get_attention(X)) == 5
    assert len(AttentionExtractor(model, memory_limit=None).get_attention(X)) == 5
    monkeypatch.setattr(memory, "free_memory", lambda device: None)
    assert len(AttentionExtractor(model).get_attention(X)) == 5, "unknown: nothing is refused"


def test_measuring_query_and_key_needs_no_room_for_weights() -> None:
    model = stack(causal, 2)
    extractor = AttentionExtractor(model, store="profile", memory_limit=1)
    extractor.watch(X)
    assert all(layer.evaluator.startswith("blocked") for layer in extractor.profile.layers)


def test_free_memory_is_that_of_this_machine() -> None:
    free = memory.free_memory(torch.device("cpu"))
    assert free is not None
    assert 1 << 20 < free < 1 << 50
    assert memory.free_memory(torch.device("meta")) is None


def test_a_container_has_its_own_limit(tmp_path: Path) -> None:
    assert memory._of_container(tmp_path) is None
    (tmp_path / "memory.current").write_text("700\n", encoding="ascii")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 200\n", encoding="ascii")
    (tmp_path / "memory.max").write_text("max\n", encoding="ascii")
    assert memory._of_container(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n", encoding="ascii")
    assert memory._of_container(tmp_path) == 500
