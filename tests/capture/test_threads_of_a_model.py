"""What a model computes in threads of its own: attention there is told, and all else let be."""

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
from tests.capture.threaded import X, attend, in_a_thread, written_out


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
