"""How kernels of somebody are shown to captures: they stay what they are, and are put back."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from attncheck import AttentionExtractor
from attncheck.capture.recorders import apply
from tests.capture.somebodys_kernels import WIDTH, Beside, Plain, beside, scripted_softmax


class Cubed(torch.autograd.Function):
    """Has a gradient, defaults, and a class of its own between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, times: float = 1.0) -> Tensor:
        ctx.save_for_backward(x)
        return x**3 * times

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grads[0], None


def test_functions_and_their_gradients_are_what_they_were() -> None:
    class Deeper(Cubed):
        @classmethod
        def apply(cls, *args: Any, **kwargs: Any) -> Any:
            return super().apply(*args, **kwargs) + 1

    bound = Cubed.apply
    model = Beside(lambda x: (x @ x.mT).softmax(-1) @ bound(x) + Deeper.apply(x, 2.0))
    x = torch.randn(1, 5, WIDTH, requires_grad=True)
    found = []
    for around in (nullcontext(), AttentionExtractor(model)):
        with around:
            out = model(x)
        found.append((out.detach(), *torch.autograd.grad(out.sum(), x)))
    assert all(map(torch.equal, *found))


def test_every_capture_sees_kernels_whatever_mode_lies_between() -> None:
    def around(x: Tensor) -> Tensor:
        with torch.device("cpu"):
            return scripted_softmax(x @ x.mT, 1.0) @ x

    model, x = beside(around), torch.randn(2, 5, WIDTH)
    with AttentionExtractor(model) as outer, AttentionExtractor(model) as inner:
        model(x)
    assert outer.maps.names == inner.maps.names == ("0", "1")


def test_kernels_are_as_they_were_when_captures_overlap() -> None:
    before = torch.jit.ScriptFunction.__call__, torch._C.ScriptMethod.__call__
    apply = vars(torch.autograd.Function)["apply"]
    code = apply.__func__.__code__
    first, second = AttentionExtractor(Plain()), AttentionExtractor(Plain())
    x = torch.randn(1, 5, WIDTH)
    first.register_hooks()
    first.model(x)
    second.register_hooks()
    second.model(x)
    first.maps, first.clear_hooks()
    thread = threading.Thread(target=lambda: scripted_softmax(x, 1.0))
    thread.start()
    thread.join()
    second.maps, second.clear_hooks()
    assert before == (torch.jit.ScriptFunction.__call__, torch._C.ScriptMethod.__call__)
    assert vars(torch.autograd.Function)["apply"] is apply
    assert apply.__func__.__code__ is code


@pytest.mark.parametrize("lends", [True, False])
def test_apply_is_shown_and_put_back(lends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
            return scale * x

    seen: list[tuple[str, int]] = []

    def shown(cls: type, args: Any, kwargs: Any) -> Any:
        seen.append((cls.__name__, len(args)))
        return apply.as_torch_applies(cls, *args, **kwargs)

    monkeypatch.setattr(apply, "_lends", lambda: lends)
    held = vars(torch.autograd.Function)["apply"]
    bound, code = Double.apply, held.__func__.__code__
    found: list[float] = []

    def call() -> None:
        with apply.apply_shown(shown):
            found.extend([float(Double.apply(torch.ones(()))), float(bound(torch.ones(()), 3.0))])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call()
    assert found == [2, 3]
    assert seen == [("Double", 1), ("Double", 2)][: 2 if lends else 1]
    assert vars(torch.autograd.Function)["apply"] is held
    assert held.__func__.__code__ is code
    assert float(bound(torch.ones(()))) == 2
