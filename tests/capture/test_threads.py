"""Captures in several threads and nested ones: each sees its own calls, and all leave no trace."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncheck import AttentionExtractor, CaptureError
from tests.capture.reference import Heads, stack

X = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(1))


def attend(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def written_out(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / 2).softmax(-1) @ v


def in_a_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


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


class Threaded(nn.Module):
    """Runs what it holds in a thread of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = in_a_thread(lambda: self.inner(x))
        return out


@pytest.mark.parametrize("how", [attend, written_out])
def test_a_model_that_runs_its_attention_in_a_thread_is_told(how: Any) -> None:
    with pytest.raises(CaptureError, match=r"inner: its attention ran in another thread"):
        AttentionExtractor(Threaded(Heads(how))).get_attention(X)
    model = nn.Sequential(Heads(how), Threaded(Heads(how)), nn.Linear(16, 16))
    with pytest.raises(CaptureError, match=r"1\.inner: its attention ran in another thread"):
        AttentionExtractor(model).get_attention(X)


class InThread(Heads):
    """Its forward runs here, and what it computes elsewhere."""

    threaded = True

    def forward(self, x: Tensor) -> Tensor:
        forward = super().forward
        out: Tensor = in_a_thread(lambda: forward(x)) if self.threaded else forward(x)
        return out


class Beside(nn.Module):
    """A layer that runs in a thread beside attention that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(16, 16), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = in_a_thread(lambda: self.layer(x))
        return out


@pytest.mark.parametrize("how", [attend, written_out])
def test_a_part_of_a_module_in_a_thread_is_told(how: Any) -> None:
    model = nn.Sequential(InThread(how), InThread(how))
    model[0].threaded = False
    with pytest.raises(CaptureError, match=r"1: its attention ran in another thread"):
        AttentionExtractor(model).get_attention(X)
    model[1].threaded = False
    assert len(AttentionExtractor(nn.Sequential(model, Beside())).get_attention(X)) == 2


def in_a_plain_thread(work: Callable[[], Any]) -> Any:
    returned: list[Any] = []
    thread = threading.Thread(target=lambda: returned.append(work()))
    thread.start()
    thread.join()
    return returned[0]


POOL = ThreadPoolExecutor(1)
POOL.submit(int).result()  # its thread is there before any capture


def in_an_old_pool(work: Callable[[], Any]) -> Any:
    return POOL.submit(work).result()


def all_of_it(run: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out: Tensor = run(lambda: (q @ k.mT / 2).softmax(-1) @ v)
    return out


def fused(run: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out: Tensor = run(lambda: F.scaled_dot_product_attention(q, k, v))
    return out


def from_the_softmax_on(run: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT / 2
    out: Tensor = run(lambda: scores.softmax(-1) @ v)
    return out


def the_end(run: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.mT / 2).softmax(-1)
    out: Tensor = run(lambda: weights @ v)
    return out


def head_by_head(run: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    work = [lambda h=h: (q[:, h] @ k[:, h].mT / 2).softmax(-1) @ v[:, h] for h in range(q.shape[1])]
    return torch.stack([run(one) for one in work], 1)


def in_a_thread_of_a_thread(work: Callable[[], Any]) -> Any:
    return in_a_plain_thread(lambda: in_a_thread(work))


WAYS = [in_a_thread_of_a_thread, in_a_plain_thread, in_a_thread, in_an_old_pool]


@pytest.mark.parametrize("run", WAYS)
@pytest.mark.parametrize("how", [all_of_it, fused, from_the_softmax_on, the_end, head_by_head])
def test_a_function_that_attends_in_a_thread_is_told(how: Any, run: Any) -> None:
    model = nn.Sequential(Heads(written_out), Heads(lambda m, q, k, v: how(run, q, k, v)))
    with pytest.raises(CaptureError, match=r"1: its attention ran in another thread"):
        AttentionExtractor(model).get_attention(X)


def test_heads_in_threads_at_once_are_told() -> None:
    def attend(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        together = threading.Barrier(4, timeout=20)

        def head(h: int) -> Tensor:
            together.wait()
            return written_out(m, q[:, h], k[:, h], v[:, h])

        with ThreadPoolExecutor(4) as pool:
            return torch.stack(list(pool.map(head, range(4))), 1)

    model = nn.Sequential(Heads(written_out), Heads(attend))
    with pytest.raises(CaptureError, match=r"1: its attention ran in another thread"):
        AttentionExtractor(model).get_attention(X)


class Meanwhile(nn.Module):
    """Attends in a thread while a function of transformers that is recorded runs in its own."""

    def __init__(self, registry: Any) -> None:
        super().__init__()
        self.registry, self.thread = registry, threading.Thread()
        self.begun = threading.Event()

    def wait(self, _: Any, q: Tensor, k: Tensor, v: Tensor, mask: None) -> tuple[Tensor, None]:
        self.begun.set()
        self.thread.join(20)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2), None

    def forward(self, x: Tensor) -> Tensor:
        heads = x.unflatten(-1, (4, 4)).transpose(1, 2)
        function = self.registry.get_interface("eager", self.wait)

        def work() -> None:
            assert self.begun.wait(20)
            written_out(Heads(attend), heads, heads, heads)

        self.thread = threading.Thread(target=work)
        self.thread.start()
        output: Tensor = function(self, heads, heads, heads, None)[0]
        return output


def test_attention_in_a_thread_is_told_while_another_thread_attends() -> None:
    transformers = pytest.importorskip("transformers.modeling_utils")
    model = Meanwhile(transformers.ALL_ATTENTION_FUNCTIONS)
    with pytest.raises(CaptureError, match=r"Meanwhile: its attention ran in another thread"):
        AttentionExtractor(model).get_attention(X)


@pytest.mark.parametrize("run", WAYS)
def test_scores_may_be_made_in_a_thread(run: Any) -> None:
    def scored(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores: Tensor = run(lambda: q @ k.mT / 2)
        return scores.softmax(-1) @ v

    module = Heads(scored)
    (weights,) = AttentionExtractor(module).get_attention(X)
    query, key = module.last
    torch.testing.assert_close(weights, (query @ key.mT / 2).softmax(-1), rtol=0, atol=1e-6)


class Elsewhere(nn.Module):
    """Does in a thread what is no attention."""

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.run, self.gate = run, nn.Linear(16, 4)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        outputs = torch.stack([self.run(lambda e=expert: e(x)) for expert in self.experts], -2)
        weights: Tensor = self.run(lambda: self.gate(x).softmax(-1))
        out: Tensor = self.run(lambda: (weights[..., None, :] @ outputs).squeeze(-2))
        return out


@pytest.mark.parametrize("run", WAYS)
def test_what_else_a_module_does_in_a_thread_is_nobodys_affair(run: Any) -> None:
    model = nn.Sequential(Heads(written_out), Elsewhere(run))
    assert tuple(AttentionExtractor(model).get_attention(X).names) == ("0",)


@pytest.mark.parametrize("run", WAYS)
def test_threads_are_started_as_before_when_a_capture_has_ended(run: Any) -> None:
    start, submit = threading.Thread.start, ThreadPoolExecutor.submit
    with AttentionExtractor(stack(written_out)) as extractor:
        extractor.model(X)
        assert run(torch._C._len_torch_function_stack) == 0, "no module has started it"
    assert threading.Thread.start is start
    assert ThreadPoolExecutor.submit is submit


class Lasting(nn.Module):
    """Starts a thread that waits for more work when the model has returned."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = threading.Event()
        self.threads: list[threading.Thread] = []

    def forward(self, x: Tensor) -> Tensor:
        self.threads.append(threading.Thread(target=self.ended.wait, args=(20,)))
        self.threads[-1].start()
        return x


def test_they_are_also_where_a_thread_outlives_the_capture() -> None:
    start, submit, lasting = threading.Thread.start, ThreadPoolExecutor.submit, Lasting()
    try:
        AttentionExtractor(nn.Sequential(Heads(written_out), lasting)).get_attention(X)
        assert threading.Thread.start is start
        assert ThreadPoolExecutor.submit is submit
    finally:
        lasting.ended.set()
        for thread in lasting.threads:
            thread.join()


def test_a_model_called_in_another_thread_only() -> None:
    model = stack(attend)
    with (
        pytest.raises(CaptureError, match=r"was not called while capturing.*in the same thread"),
        AttentionExtractor(model),
    ):
        in_a_thread(lambda: model(X))
