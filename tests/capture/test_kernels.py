"""Kernels of somebody, beside attention that is captured: their weights are captured, or told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncheck import AttentionExtractor, CaptureError

WIDTH = 8
Function = Callable[[Tensor], Tensor]


class Plain(nn.Module):
    """Attention that is captured."""

    def forward(self, x: Tensor) -> Tensor:
        return (x @ x.mT).softmax(-1) @ x


class Beside(nn.Module):
    """Says nothing of attention in its name."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def beside(function: Function) -> nn.Module:
    return nn.Sequential(Plain(), Beside(function))


@torch.jit.script
def scripted_softmax(scores: Tensor, scale: float) -> Tensor:
    return torch.softmax(scores * scale, -1)


@torch.jit.script
def scripted_masked(scores: Tensor, mask: Tensor) -> Tensor:
    return torch.softmax(scores.masked_fill(mask, -10000.0), -1)


@torch.jit.script
def scripted_scaling(scores: Tensor, scale: float) -> Tensor:
    return scores * scale


class Kernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        return torch.from_numpy(scores.detach().numpy()).softmax(-1)


SCRIPTED = torch.jit.script(nn.Softmax(-1))


@pytest.fixture(scope="module", autouse=True)
def operators() -> Iterator[torch.library.Library]:
    library = torch.library.Library("somebodys", "DEF")
    library.define("normalise(Tensor scores) -> Tensor")
    library.impl("normalise", lambda scores: torch.softmax(scores, -1), "CPU")
    library.define("scale(Tensor scores, float factor) -> Tensor")
    library.impl("scale", lambda scores, factor: scores * factor, "CPU")
    library.define("mystery(Tensor q, Tensor k, Tensor v, float scale) -> Tensor")
    library.impl("mystery", lambda q, k, v, s: (q @ k.mT * s).softmax(-1) @ v, "CPU")
    library.define("by_heads(Tensor q, Tensor k, Tensor v) -> Tensor")
    library.impl("by_heads", _by_heads, "CPU")
    library.define("flash_fwd(Tensor q, Tensor k, Tensor v) -> Tensor")
    library.impl("flash_fwd", lambda q, k, v: (q @ k.mT).sigmoid() @ v, "CPU")
    library.define("linear_form(Tensor q, Tensor k, Tensor v) -> Tensor")
    library.impl("linear_form", lambda q, k, v: q @ (k.mT @ v), "CPU")
    yield library
    library._destroy()


def _by_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def ops() -> Any:
    return torch.ops.somebodys


SOFTMAXES: dict[str, Function] = {
    "script": lambda x: scripted_softmax(x @ x.mT, 1.0) @ x,
    "script by name": lambda x: scripted_softmax(scores=x @ x.mT, scale=1.0) @ x,
    "script behind script": lambda x: scripted_softmax(scripted_scaling(x @ x.mT, 1.0), 1.0) @ x,
    "script module": lambda x: SCRIPTED(x @ x.mT) @ x,
    "operator": lambda x: ops().normalise(x @ x.mT) @ x,
    "overload": lambda x: ops().normalise.default(ops().scale(x @ x.mT, 1.0)) @ x,
    "autograd function": lambda x: Kernel.apply(x @ x.mT) @ x,
}


@pytest.mark.parametrize("name", SOFTMAXES)
def test_a_softmax_in_a_kernel_is_captured(name: str) -> None:
    x = torch.randn(2, 5, WIDTH)
    layers = AttentionExtractor(beside(SOFTMAXES[name])).get_attention(x).layers
    assert [layer.name for layer in layers] == ["0", "1"]
    y = layers[0].weights[:, 0] @ x
    torch.testing.assert_close(layers[1].weights[:, 0], (y @ y.mT).softmax(-1))
    assert layers[1].status == "exact"


@pytest.mark.parametrize("hides", [True, False])
def test_a_mask_that_the_kernel_applies_is_read_from_its_zeros(hides: bool) -> None:
    mask = torch.tensor([[False, False, True, False, False]]).expand(5, 5)
    function = beside(lambda x: scripted_masked(x @ x.mT, mask if hides else mask & False) @ x)
    layer = AttentionExtractor(function).get_attention(torch.randn(1, 5, WIDTH)).layers[1]
    assert layer.visible()[0, 0, 0].tolist() == [not hidden for hidden in (mask[0] & hides)]


def test_scores_that_a_kernel_only_scales_stay_scores() -> None:
    x = torch.randn(1, 5, WIDTH)
    model = Beside(lambda x: scripted_scaling(x @ x.mT, 0.5).softmax(-1) @ x)
    (weights,) = AttentionExtractor(model).get_attention(x)
    torch.testing.assert_close(weights[0, 0], (x[0] @ x[0].mT * 0.5).softmax(-1))


def _in_integers(x: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = (x / 0.05).round().clamp(-128, 127).to(dtype)
    return rounded @ rounded.mT


INTEGERS: dict[str, Function] = {
    "int32": lambda x: (_in_integers(x, torch.int32).float() * 0.05**2).softmax(-1) @ x,
    "int64": lambda x: (_in_integers(x, torch.int64) * 0.05**2).softmax(-1) @ x,
    "_int_mm": lambda x: (
        (
            torch._int_mm(*[(x[0] / 0.05).to(torch.int8)] * 1, (x[0] / 0.05).to(torch.int8).mT)
            / 400
        ).softmax(-1)
        @ x[0]
    ),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_scores_of_integers_are_scores(name: str) -> None:
    x = torch.randn(1, 32, 32)
    maps = AttentionExtractor(beside(INTEGERS[name])).get_attention(x)
    assert maps.names == ("0", "1")
    assert maps.layers[1].status == "exact"


TOLD: dict[str, Function] = {
    "scale given": lambda x: ops().mystery(x, x, x, 0.3),
    "heads behind queries": lambda x: ops().by_heads(*[x.unflatten(-1, (2, 4))] * 3).flatten(2),
    "by its name alone": lambda x: ops().flash_fwd(x, x, x),
    "sparse softmax": lambda x: torch.sparse.mm(
        torch.sparse.softmax((x[0] @ x[0].mT).to_sparse(), 1), x[0]
    ),
    "sampled product": lambda x: torch.sparse.mm(
        torch.sparse.softmax(
            torch.sparse.sampled_addmm(
                torch.ones(5, 5).tril().to_sparse_csr(), x[0], x[0].mT.contiguous(), beta=0.0
            ).to_sparse_coo(),
            1,
        ),
        x[0],
    ),
    "lent to another library": lambda x: (
        (torch.from_dlpack((x @ x.mT).detach()).exp().clone() / 1e3) @ x
    ),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("name", TOLD)
def test_attention_that_cannot_be_captured_is_told(name: str) -> None:
    with pytest.raises(CaptureError, match="captured 1 attention modules, but not all"):
        AttentionExtractor(beside(TOLD[name])).get_attention(torch.randn(1, 5, WIDTH))


def test_a_kernel_that_is_no_attention_is_left_alone() -> None:
    x = torch.randn(2, 5, WIDTH)
    maps = AttentionExtractor(beside(lambda x: ops().linear_form(x, x, x))).get_attention(x)
    assert maps.names == ("0",)


def test_kernels_are_as_they_were_when_captures_overlap() -> None:
    before = torch.jit.ScriptFunction.__call__, torch._C.ScriptMethod.__call__
    apply = vars(torch.autograd.Function)["apply"]
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
