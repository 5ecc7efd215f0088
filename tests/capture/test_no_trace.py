"""A capture leaves everything as it was, however it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attncheck import AttentionExtractor, AttentionMaps, CaptureError
from tests.capture.reference import Heads

X = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(1))


class Breaks(nn.Module):
    """Raises what it is told to, after attention."""

    def __init__(self) -> None:
        super().__init__()
        self.error: type[BaseException] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.error is not None:
            raise self.error("on purpose")
        return x


def build() -> nn.Sequential:
    torch.manual_seed(0)
    attend = Heads(lambda m, q, k, v: m.drop(F.scaled_dot_product_attention(q, k, v)))
    encoder = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    written_out = Heads(lambda m, q, k, v: (q @ k.mT).softmax(-1) @ v)
    return nn.Sequential(attend, encoder, written_out, Breaks())


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that a capture could leave behind."""
    interface: Any = object
    try:
        from transformers.modeling_utils import AttentionInterface

        interface = AttentionInterface
    except ImportError:
        pass
    return {
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in model.modules()
        ],
        "global hooks": len(torch.nn.modules.module._global_forward_pre_hooks),
        "modes": [m.training for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "function modes": torch._C._len_torch_function_stack(),
        "sdpa": F.scaled_dot_product_attention,
        "multi head": F.multi_head_attention_forward,
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "gradients": torch.is_grad_enabled(),
        "random": torch.get_rng_state().sum().item(),
        "interface": dict(vars(interface)),
    }


@pytest.fixture
def model() -> Iterator[nn.Sequential]:
    model = build()
    model[0].eval()  # modes differ among submodules
    before = state(model)
    yield model
    assert state(model) == before


def test_after_success(model: nn.Sequential) -> None:
    assert len(AttentionExtractor(model).get_attention(X)) == 3


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_after_an_exception(model: nn.Sequential, error: type[BaseException]) -> None:
    last = model[-1]
    assert isinstance(last, Breaks)
    last.error = error
    with pytest.raises(error, match="on purpose"):
        AttentionExtractor(model).get_attention(X)
    with pytest.raises(error, match="on purpose"), AttentionExtractor(model):
        model.eval()(X)
    model.train()
    model[0].eval()


def test_after_a_failed_capture(model: nn.Sequential) -> None:
    with pytest.raises(CaptureError), AttentionExtractor(model):
        pass


def test_training_forward_draws_the_same_random_numbers() -> None:
    model = build().train()
    torch.manual_seed(7)
    before, drawn = model(X), torch.rand(1)
    torch.manual_seed(7)
    with AttentionExtractor(model):
        during = model(X)
    assert torch.equal(torch.rand(1), drawn)
    assert torch.equal(during, before)


def test_gradients_flow_as_before() -> None:
    model = build()
    model.eval()
    model(X).sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    with AttentionExtractor(model) as extractor:
        model(X).sum().backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))
    assert not any(weights.requires_grad for weights in extractor.maps)


def test_a_with_block_leaves_the_mode_to_the_user(model: nn.Sequential) -> None:
    with AttentionExtractor(model):
        assert model.training
        assert torch.is_grad_enabled()
        assert model[2](X).requires_grad


def test_nested_captures_see_the_same(model: nn.Sequential) -> None:
    with AttentionExtractor(model) as outer, AttentionExtractor(model, layers=["2"]) as inner:
        model.eval()
        model(X)
    model.train()
    model[0].eval()
    assert outer.maps.names == ("0", "1.self_attn", "2")
    assert inner.maps.names == ("2",)
    assert torch.equal(outer.maps["2"], inner.maps[0])


def test_two_models_in_one_block_stay_apart() -> None:
    first, second = build(), build()
    with AttentionExtractor(first[0]) as one, AttentionExtractor(second[2]) as two:
        first(X)
        second(X)
    assert one.maps.names == two.maps.names == ("Heads",)
    assert (one.maps.layers[0].backend, two.maps.layers[0].backend) == ("sdpa", "softmax")


def test_another_thread_captures_its_own_model() -> None:
    results: dict[str, AttentionMaps] = {}
    barrier = threading.Barrier(2)

    def work(name: str, heads: list[int]) -> None:
        model = build().eval()
        with AttentionExtractor(model, heads=heads) as extractor:
            barrier.wait()
            model(X)
            barrier.wait()
        results[name] = extractor.maps

    threads = [threading.Thread(target=work, args=(n, [i])) for i, n in enumerate("ab")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[name].layers[0].heads for name in "ab"] == [(0,), (1,)]
    assert [len(results[name]) for name in "ab"] == [3, 3]


class Counts(TorchFunctionMode):
    """Somebody else's function mode."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        return func(*args, **(kwargs or {}))


def test_hooks_and_another_mode_in_any_order(model: nn.Sequential) -> None:
    extractor = AttentionExtractor(model)
    extractor.register_hooks()
    with Counts() as mode:
        model[0](X)
        extractor.clear_hooks()
        before = mode.seen
        model[0](X)
        assert mode.seen > before


def test_the_classic_door(model: nn.Sequential) -> None:
    extractor = AttentionExtractor(model)
    extractor.register_hooks(["0", "2"])
    with torch.random.fork_rng():
        model(X)
    maps = extractor.maps
    extractor.clear_hooks()
    assert maps.names == ("0", "2")
    with pytest.raises(CaptureError, match="nothing captured yet"):
        extractor.maps  # noqa: B018


def test_the_classic_order_register_get_clear(model: nn.Sequential) -> None:
    extractor = AttentionExtractor(model)
    assert extractor.attention_weights == []
    extractor.register_hooks()
    first = extractor.get_attention(X)
    second = extractor.get_attention(X[:1])
    assert [len(first), len(second)] == [3, 3], "each call starts a fresh record"
    assert second[0].shape[0] == 1
    with torch.random.fork_rng():
        model(X)
    assert len(extractor.maps) == 6, "hooks stay on until they are cleared"
    assert all(
        torch.equal(a, b) for a, b in zip(extractor.attention_weights, extractor.maps, strict=True)
    )
    extractor.clear_hooks()
    assert extractor.attention_weights == []
    with torch.random.fork_rng():
        model(X)
    assert extractor.attention_weights == []


def test_an_error_under_registered_hooks_leaves_them_to_be_cleared(model: nn.Sequential) -> None:
    extractor = AttentionExtractor(model)
    extractor.register_hooks()
    model[-1].error = KeyboardInterrupt  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        extractor.get_attention(X)
    model[-1].error = None  # type: ignore[assignment]
    assert len(extractor.get_attention(X)) == 3
    extractor.clear_hooks()
