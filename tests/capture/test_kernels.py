"""Kernels of somebody, beside attention that is captured: their weights are captured, or told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from attncheck import AttentionExtractor, CaptureError
from tests.capture.somebodys_kernels import (
    SCRIPTED,
    TRACED,
    WIDTH,
    Attending,
    AttnResidualAdd,
    Beside,
    Function,
    Kernel,
    Mix,
    Normalise,
    attend,
    beside,
    dropout_add,
    forward,
    normalise,
    operators,
    ops,
    scripted_attention,
    scripted_masked,
    scripted_router,
    scripted_scaling,
    scripted_softmax,
    scripted_with_sums,
)


@pytest.fixture(scope="module", autouse=True)
def defined() -> Iterator[None]:
    with operators():
        yield


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
