"""Captures in several threads and nested ones: each sees its own calls, and all leave no trace."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attncheck import AttentionExtractor, CaptureError
from tests.capture.reference import stack
from tests.capture.threaded import X, attend, in_a_thread, written_out


class Steps(nn.Module):
    """Two attentions, and whatever a test wants to happen between them."""

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.layers = stack(how)
        self.between: Callable[[], object] = lambda: None

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.layers.children()
        x = first(x)
        self.between()
        out: Tensor = second(x)
        return out


@pytest.fixture(params=[attend, written_out, "transformers"])
def model(request: pytest.FixtureRequest) -> Steps:
    if request.param != "transformers":
        return Steps(request.param).eval()
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(hidden_size=16, num_attention_heads=4, intermediate_size=32)
    layer = transformers.models.bert.modeling_bert.BertSelfAttention
    model = Steps(attend).eval()
    config._attn_implementation = "sdpa"
    model.layers = nn.Sequential(*(First(layer(config)) for _ in range(2))).eval()
    return model


class First(nn.Module):
    """First of what a module returns."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)[0]
        return out


def indices(extractor: AttentionExtractor) -> list[tuple[int, int]]:
    return [(layer.index, layer.call) for layer in extractor.maps.layers]


def test_another_threads_call_of_the_model_is_not_recorded(model: Steps) -> None:
    other: list[Tensor] = []

    def call() -> None:
        model.between = lambda: None
        in_a_thread(lambda: other.append(model(X[:1])))

    model.between = call
    with AttentionExtractor(model) as extractor:
        model(X)
    assert other
    assert indices(extractor) == [(0, 0), (1, 0)]
    assert {weights.shape[0] for weights in extractor.maps} == {2}


def test_two_threads_capture_one_model_each_for_itself(model: Steps) -> None:
    barrier = threading.Barrier(2, timeout=20)
    model.between = barrier.wait

    def capture(x: Tensor, head: int) -> AttentionExtractor:
        extractor = AttentionExtractor(model, heads=head)
        barrier.wait()
        extractor.get_attention(x)
        return extractor

    model.train()
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(capture, (X, X[:1]), (0, 1))
    assert model.training
    model.between = lambda: None
    for extractor, x, head in ((one, X, 0), (two, X[:1], 1)):
        assert indices(extractor) == [(0, 0), (1, 0)]
        alone = AttentionExtractor(model, heads=head).get_attention(x)
        assert all(torch.equal(a, b) for a, b in zip(extractor.maps, alone, strict=True))


def test_overlapping_evaluations_restore_the_first_mode() -> None:
    model = Steps(attend).train()
    model.layers[0].eval()
    inside, done = threading.Event(), threading.Event()
    modes: list[bool] = []

    def wait() -> None:
        inside.set()
        assert done.wait(20)
        modes.append(model.training)

    model.between = wait
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(AttentionExtractor(model).get_attention, X)
        assert inside.wait(20)
        model.between = lambda: None
        AttentionExtractor(model).get_attention(X)
        done.set()
        slow.result()
    assert modes == [False], "the first to end must not put back what the other needs"
    assert model.training
    assert not model.layers[0].training


def test_compilation_is_allowed_again_when_the_last_capture_ends() -> None:
    from torch._dynamo import eval_frame

    def stance() -> str:
        return str(eval_frame._stance.stance)

    model = stack(attend)
    before = stance()
    first, second = AttentionExtractor(model), AttentionExtractor(model)
    first.register_hooks()
    second.register_hooks()
    first.clear_hooks()
    assert stance() == "force_eager"
    second.clear_hooks()
    assert stance() == before


def test_a_capture_may_be_ended_by_another_thread(model: Steps) -> None:
    extractor = AttentionExtractor(model)
    extractor.register_hooks()
    try:
        in_a_thread(extractor.clear_hooks)
        model(X)
        assert extractor.attention_weights == []
    finally:
        while torch._C._len_torch_function_stack():
            torch._C._pop_torch_function_stack()
    assert len(AttentionExtractor(model).get_attention(X)) == 2


def test_extractors_nest_in_any_order(model: Steps) -> None:
    names = [name for name, module in model.named_modules() if name == "layers.1"]
    outer, inner = AttentionExtractor(model), AttentionExtractor(model, layers=names)
    outer.register_hooks()
    inner.register_hooks()
    model(X)
    assert len(outer.maps) == 2
    assert torch.equal(outer.maps[1], inner.maps[0])
    outer.clear_hooks()
    model(X[:1])
    assert [weights.shape[0] for weights in inner.maps] == [2, 1]
    inner.clear_hooks()


def test_an_extractor_of_a_part_inside_one_of_the_whole(model: Steps) -> None:
    with AttentionExtractor(model) as whole, AttentionExtractor(model.layers[1]) as part:
        model(X)
        model(X)
    assert indices(whole) == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert indices(part) == [(0, 0), (0, 1)]
    assert torch.equal(whole.maps[1], part.maps[0])


def test_a_model_called_in_another_thread_only() -> None:
    model = stack(attend)
    with (
        pytest.raises(CaptureError, match=r"was not called while capturing.*in the same thread"),
        AttentionExtractor(model),
    ):
        in_a_thread(lambda: model(X))
