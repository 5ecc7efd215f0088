"""Kernels of somebody, beside attention that is captured: their weights are captured, or told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncheck import AttentionExtractor, CaptureError
from attncheck.capture.recorders import apply

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


@torch.jit.script
def scripted_with_sums(scores: Tensor) -> tuple[Tensor, Tensor]:
    return torch.softmax(scores, -1), scores.logsumexp(-1)


@torch.jit.script
def scripted_attention(q: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bqd,bkd->bqk", [q, v])
    return torch.einsum("bqk,bkd->bqd", [torch.softmax(scores, -1), v])


@torch.jit.script
def scripted_router(x: Tensor, w: Tensor) -> Tensor:
    return torch.softmax(torch.matmul(x, w), -1)


@torch.jit.script
def dropout_add(p: Tensor, bias: Tensor, residual: Tensor, prob: float) -> Tensor:
    return p + bias * 0.0 + residual * 0.0


class Attending(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return F.scaled_dot_product_attention(q, k, v)


normalise, attend = Kernel.apply, Attending.apply


class Added(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        scores = torch.baddbmm(torch.zeros(1, 5, 5), x, x.mT)
        return torch.baddbmm(torch.zeros(1, 5, WIDTH), torch.softmax(scores, -1), x)


TRACED = torch.jit.trace(Added(), torch.randn(1, 5, WIDTH))
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
    library.impl("flash_fwd", _without_last_key, "CPU")
    library.define("linear_form(Tensor q, Tensor k, Tensor v) -> Tensor")
    library.impl("linear_form", lambda q, k, v: q @ (k.mT @ v), "CPU")
    for signature, implementation in KERNELS.items():
        library.define(signature)
        library.impl(signature.split("(")[0], implementation, "CPU")
    yield library
    library._destroy()


def _without_last_key(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k[:, :-1], v[:, :-1])


def _in_place(scores: Tensor) -> None:
    scores.copy_(scores.softmax(-1))


def _into(out: Tensor, scores: Tensor) -> None:
    out.copy_(scores.softmax(-1))


def _copy_into(o: Tensor, x: Tensor) -> None:
    o.copy_(x)


def _attend_into(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    out.copy_(F.scaled_dot_product_attention(q, k, v))


KERNELS: dict[str, Callable[..., Any]] = {
    "softmax_lse(Tensor s) -> (Tensor, Tensor)": lambda s: (s.softmax(-1), s.logsumexp(-1)),
    "softmaxes(Tensor[] s) -> Tensor[]": lambda s: [each.softmax(-1) for each in s],
    "softmax_dim(Tensor s, int dim) -> Tensor": lambda s, dim: s.softmax(dim),
    "softmax_(Tensor(a!) s) -> ()": _in_place,
    "softmax_out(Tensor(a!) o, Tensor s) -> ()": _into,
    "softmax_sink(Tensor s) -> Tensor": lambda s: s.exp() / (1 + s.exp().sum(-1, keepdim=True)),
    "weigh(Tensor w, Tensor v) -> Tensor": lambda w, v: w @ v,
    "copy_into(Tensor(a!) o, Tensor x) -> ()": _copy_into,
    "dropout_(Tensor(a!) p, Tensor mask) -> Tensor(a!)": lambda p, mask: p.mul_(mask),
    "relu_scores(Tensor s) -> Tensor": lambda s: (s - 100).relu(),
    "unified_attention_with_output(Tensor q, Tensor k, Tensor v, Tensor(a!) o) -> ()": _attend_into,
    "packed(Tensor qkv) -> Tensor": lambda p: F.scaled_dot_product_attention(*p.unbind(2)),
    "listed(Tensor[] qkv) -> Tensor": lambda p: F.scaled_dot_product_attention(*p),
    "flash_lse(Tensor q, Tensor k, Tensor v) -> (Tensor, Tensor)": lambda q, k, v: (
        (q @ k.mT).logsumexp(-1),
        F.scaled_dot_product_attention(q, k, v),
    ),
    "probabilities(Tensor q, Tensor k) -> Tensor": lambda q, k: (q @ k.mT).softmax(-1),
    "flash_rms_norm(Tensor x, Tensor r, Tensor w) -> Tensor": lambda x, r, w: (
        F.rms_norm(x + r, (WIDTH,)) * w
    ),
    "attn_gate(Tensor x, Tensor g, Tensor r) -> Tensor": lambda x, g, r: x * g.sigmoid() + r,
    "attention_mix(Tensor o, Tensor x, Tensor g) -> Tensor": lambda o, x, g: o + x * g,
    "linear_attention(Tensor q, Tensor k, Tensor v) -> Tensor": lambda q, k, v: (
        (q.sigmoid() @ k.sigmoid().mT) @ v / (q.sigmoid() @ k.sigmoid().mT).sum(-1, True)
    ),
    "forward(Tensor a, Tensor b, Tensor c) -> Tensor": lambda a, b, c: a * b + c,
    "run(Tensor q, Tensor k, Tensor v, bool attends=True) -> Tensor": lambda q, k, v, yes=True: (
        F.scaled_dot_product_attention(q, k, v) if yes else q * k + v
    ),
    "product(Tensor a, Tensor b, Tensor c) -> Tensor": lambda a, b, c: a * b * c,
    "pick(Tensor a, Tensor b, Tensor c) -> Tensor": lambda a, b, c: torch.where(a > 9, b, c),
    "quantise(Tensor x, Tensor s, Tensor z) -> Tensor": lambda x, s, z: (x + z).to(torch.int8),
    "cached(Tensor q, Tensor k, Tensor v) -> Tensor": lambda q, k, v: q.clone(),
}


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
    "autograd function under another name": lambda x: normalise(x @ x.mT) @ x,
    "with sums": lambda x: ops().softmax_lse(x @ x.mT)[0] @ x,
    "script with sums": lambda x: scripted_with_sums(x @ x.mT)[0] @ x,
    "in a list": lambda x: ops().softmaxes([x @ x.mT])[0] @ x,
    "keys in front": lambda x: ops().softmax_dim(x @ x.mT, 1).mT @ x,
    "in place": lambda x: _overwritten(x @ x.mT, ops().softmax_) @ x,
    "into an argument": lambda x: _written(x @ x.mT) @ x,
}


def _overwritten(scores: Tensor, kernel: Callable[[Tensor], None]) -> Tensor:
    kernel(scores)
    return scores


def _written(scores: Tensor) -> Tensor:
    out = torch.empty_like(scores)
    ops().softmax_out(out, scores)
    return out


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", SOFTMAXES)
def test_a_softmax_in_a_kernel_is_captured(name: str, around: Callable[[], Any]) -> None:
    x = torch.randn(2, 5, WIDTH)
    with around():
        layers = AttentionExtractor(beside(SOFTMAXES[name])).get_attention(x).layers
    assert [layer.name for layer in layers] == ["0", "1"]
    y = layers[0].weights[:, 0] @ x
    torch.testing.assert_close(layers[1].weights[:, 0], (y @ y.mT).softmax(-1))
    assert layers[1].status == "exact"


def test_each_of_some_scores_in_a_list_keeps_its_own_mask() -> None:
    past, ahead = torch.ones(5, 5).tril().bool(), torch.ones(5, 5).triu().bool()

    def both(x: Tensor) -> Tensor:
        masked = [(x @ x.mT).masked_fill(~shown, -torch.inf) for shown in (past, ahead)]
        first, second = ops().softmaxes(masked)
        return first @ x + second @ x

    layers = AttentionExtractor(beside(both)).get_attention(torch.randn(1, 5, WIDTH)).layers
    assert [layer.name for layer in layers] == ["0", "1", "1"]
    for layer, shown in zip(layers[1:], (past, ahead), strict=True):
        assert torch.equal(layer.visible()[0, 0], shown)


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


def _masked(x: Tensor) -> Tensor:
    return _in_integers(x, torch.int32).masked_fill(torch.ones(32, 32).triu(1).bool(), -(10**8))


INTEGERS: dict[str, Function] = {
    "int32": lambda x: (_in_integers(x, torch.int32).float() * 0.05**2).softmax(-1) @ x,
    "int64": lambda x: (_in_integers(x, torch.int64) * 0.05**2).softmax(-1) @ x,
    "masked": lambda x: (_masked(x).float() * 0.05**2).softmax(-1) @ x,
    "shifted": lambda x: ((_in_integers(x, torch.int32) + 3) * 0.05**2).softmax(-1) @ x,
    "reshaped": lambda x: (
        (_in_integers(x, torch.int32).flatten(0, 1) * 0.05**2).softmax(-1).unflatten(0, (-1, 32))
        @ x
    ),
    "cut and joined": lambda x: (
        (torch.cat(_in_integers(x, torch.int32).split(8, 1), 1) * 0.05**2).softmax(-1) @ x
    ),
    "weights": lambda x: ((x @ x.mT).softmax(-1) * 255).round().to(torch.uint8).float() / 255 @ x,
    "weights multiplied as they are": lambda x: (
        ((x @ x.mT).softmax(-1) * 127).round().int() @ (x * 64).int() / 8128.0
    ),
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


def _by_operator(x: Tensor) -> Tensor:
    buffer = torch.empty_like(x)
    ops().copy_into(buffer, x)
    return buffer


def _by_out(x: Tensor) -> Tensor:
    buffer = torch.empty(x.shape)
    torch.mul(x, 1.0, out=buffer)
    return buffer


def _by_out_of_another(x: Tensor) -> Tensor:
    buffer = torch.empty(x.shape)
    torch.tanh(x.atanh(), out=buffer)
    return buffer


def _by_product(x: Tensor) -> Tensor:
    buffer = torch.empty(x.shape)
    torch.matmul(x, torch.eye(WIDTH), out=buffer)
    return buffer


def _by_list(x: Tensor) -> Tensor:
    buffer = torch.empty_like(x)
    torch._foreach_copy_([buffer], [x])
    return buffer


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("which", ["k", "v", "qk", "qkv"])
@pytest.mark.parametrize("fill", [_by_operator, _by_out, _by_out_of_another, _by_product, _by_list])
def test_what_is_written_into_a_buffer_depends_on_the_input(
    fill: Function, which: str, around: Callable[[], Any]
) -> None:
    def attend(x: Tensor) -> Tensor:
        x = x.sigmoid()
        q, k, v = (fill(x) if name in which else x for name in "qkv")
        return (q @ k.mT).softmax(-1) @ v

    with around():
        maps = AttentionExtractor(beside(attend)).get_attention(torch.randn(2, 5, WIDTH))
    assert maps.names == ("0", "1")


def test_a_mask_on_scores_of_integers_is_told() -> None:
    maps = AttentionExtractor(beside(INTEGERS["masked"])).get_attention(torch.randn(1, 32, 32))
    assert torch.equal(maps.layers[1].visible()[0, 0], torch.ones(32, 32).tril().bool())


def test_places_that_were_computed_from_scores_are_no_scores() -> None:
    table = torch.randn(8, 6)
    model = beside(
        lambda x: table[(x @ x.mT).abs().int().clamp(max=7)].softmax(-1).sum(2) @ table.T
    )
    assert AttentionExtractor(model).get_attention(torch.randn(1, 5, WIDTH)).names == ("0",)


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
    "weights multiplied in a kernel": lambda x: ops().weigh((x @ x.mT).softmax(-1), x),
    "written into an argument": lambda x: _attended(x),
    "packed": lambda x: ops().packed(torch.stack([x, x, x], 2)),
    "in a list": lambda x: ops().listed([x, x, x]),
    "behind its sums": lambda x: ops().flash_lse(x, x, x)[1],
    "weights made in a kernel": lambda x: ops().probabilities(x, x) @ x,
    "autograd function": lambda x: Attending.apply(x, x.flip(1), x),
    "autograd function under another name": lambda x: attend(x, x.flip(1), x),
    "script of einsums": lambda x: scripted_attention(x, x),
    "traced": lambda x: TRACED(x),
    "lent to another library": lambda x: (
        (torch.from_dlpack((x @ x.mT).detach()).exp().clone() / 1e3) @ x
    ),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("name", TOLD)
def test_attention_that_cannot_be_captured_is_told(name: str) -> None:
    with pytest.raises(CaptureError, match="captured 1 attention modules, but not all"):
        AttentionExtractor(beside(TOLD[name])).get_attention(torch.randn(1, 5, WIDTH))


def _attended(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    ops().unified_attention_with_output(x, x, x, out)
    return out


class AttnResidualAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, o: Tensor, x: Tensor, g: Tensor) -> Tensor:
        return torch.from_numpy((o / 2 + x * g / 9).detach().numpy())


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


class forward(torch.autograd.Function):  # noqa: N801
    """Attention, called as an operator is that does not attend."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return Attending.forward(ctx, q, k, v)


HIDING: dict[str, Function] = {
    "a kernel of another library": lambda x: forward.apply(ops().forward(x, x, x), x, x),
    "values that were alike": lambda x: ops().run(x, x, x + ops().run(x, x, x * 0)),
    "another option": lambda x: ops().run(x, x, _again(x, lambda x: ops().run(x, x, x, False))),
}


def _again(x: Tensor, function: Function) -> Tensor:
    for _ in range(6):
        x = function(x)
    return x


@pytest.mark.parametrize("name", HIDING)
def test_what_does_not_attend_hides_no_kernel_that_does(name: str) -> None:
    with pytest.raises(CaptureError, match="calls the kernel"):
        AttentionExtractor(beside(HIDING[name])).get_attention(torch.randn(1, 5, WIDTH))


OTHERS: dict[str, Function] = {
    "linear attention": lambda x: ops().linear_form(x, x, x),
    "linear attention by name": lambda x: ops().linear_attention(x, x, x),
    "a mix by name": lambda x: ops().attention_mix(x, x.flip(1), x),
    "words of a class": lambda x: AttnResidualAdd.apply(x, x, x),
    "norm": lambda x: ops().flash_rms_norm(x, x, x),
    "gate": lambda x: ops().attn_gate(x, x, x),
    "rows that are alike": lambda x: ops().product(x * 0 + 1, x, torch.ones_like(x) * 0 + x[:, :1]),
    "factor of zero": lambda x: ops().product(x, x, torch.zeros_like(x)),
    "one position": lambda x: ops().pick(x[:, :1], x[:, :1], x[:, :1]),
    "integers": lambda x: x + ops().quantise(x, x, x),
    "empty cache": lambda x: ops().cached(x, x[:, :0], x[:, :0]),
    "router in a script": lambda x: scripted_router(x, torch.ones(WIDTH, 3))[..., :1] * x,
    "rows of zeros": lambda x: ops().relu_scores(x @ x.mT) @ x,
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_kernel_that_is_no_attention_is_left_alone(name: str) -> None:
    maps = AttentionExtractor(beside(OTHERS[name])).get_attention(torch.randn(2, 5, WIDTH))
    assert maps.names == ("0",)


def test_a_share_of_a_sink_in_a_kernel_is_its_mass() -> None:
    model = beside(lambda x: ops().softmax_sink(x @ x.mT) @ x)
    layer = AttentionExtractor(model).get_attention(torch.randn(1, 5, WIDTH)).layers[1]
    assert layer.sink_mass is not None
    torch.testing.assert_close(layer.weights.sum(-1) + layer.sink_mass, torch.ones(1, 1, 5))
    assert (layer.sink_mass > 0).any()


@pytest.mark.parametrize(
    "drop",
    [lambda w, mask: ops().dropout_(w, mask), lambda w, mask: dropout_add(w, mask, mask, 0.1)],
)
def test_arguments_of_kernels_are_not_those_of_torch(drop: Callable[..., Tensor]) -> None:
    x = torch.randn(2, 5, WIDTH)
    model = Beside(lambda x: drop((x @ x.mT).softmax(-1), torch.ones(2, 5, 5)) @ x)
    (weights,) = AttentionExtractor(model).get_attention(x)
    torch.testing.assert_close(weights[:, 0], (x @ x.mT).softmax(-1))


class Normalise(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor) -> Tensor:
        return scores.softmax(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass


class Mix(Normalise):
    @staticmethod
    def forward(a: Tensor, b: Tensor, c: Tensor) -> Tensor:  # type: ignore[override]
        return a * b + c


def test_a_softmax_in_a_kernel_under_vmap_is_refused_as_any_other() -> None:
    model = beside(torch.vmap(lambda x: Normalise.apply(x @ x.mT) @ x))
    with pytest.raises(CaptureError, match=r"1: it runs under torch\.vmap"):
        AttentionExtractor(model).get_attention(torch.randn(2, 5, WIDTH))


def test_a_kernel_under_vmap_that_is_no_attention_is_left_alone() -> None:
    model = beside(torch.vmap(lambda x: Mix.apply(x, x.flip(0), x)))
    assert AttentionExtractor(model).get_attention(torch.randn(2, 5, WIDTH)).names == ("0",)


def _of_name(name: str) -> Callable[[Tensor], Tensor]:
    unit = torch.jit.CompilationUnit(f"def {name}(x):\n    return x * 1.0\n")
    return getattr(unit, name)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["cos", "exp", "linear", "transpose", "select", "cat", "topk"])
def test_names_of_kernels_are_not_those_of_torch(name: str) -> None:
    function, x = _of_name(name), torch.randn(2, 5, WIDTH)
    model = Beside(lambda x: function(x @ x.mT).softmax(-1) @ x)
    (weights,) = AttentionExtractor(model).get_attention(x)
    torch.testing.assert_close(weights[:, 0], (x @ x.mT).softmax(-1))


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
