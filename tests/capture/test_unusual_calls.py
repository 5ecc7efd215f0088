"""Models that are transformed, copied, scripted or empty while they are captured."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncheck import AttentionExtractor, CaptureError
from tests.capture.reference import Heads, stack

X = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(1))


def by_kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / 2).softmax(-1) @ v


BOTH = pytest.mark.parametrize("how", [by_kernel, by_hand])


def layers(how: Callable[..., Tensor]) -> nn.Module:
    return stack(lambda _, q, k, v: how(q, k, v)).eval()


class Kernel(nn.Module):
    """Attention that TorchScript can compile and that can be pickled."""

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


class Hand(nn.Module):
    """The same by hand."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x @ x.mT, dim=-1) @ x


class Plain(nn.Module):
    """No attention at all."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("make", [Kernel, Hand])
@pytest.mark.parametrize("way", ["script", "trace"])
def test_a_root_in_torchscript_is_refused(make: Callable[[], nn.Module], way: str) -> None:
    root = torch.jit.script(make()) if way == "script" else torch.jit.trace(make(), X)
    with pytest.raises(
        CaptureError, match=r"is TorchScript.*Pass the module that it was made from"
    ):
        AttentionExtractor(root).get_attention(X)
    with pytest.raises(CaptureError, match=r"TorchScript"), AttentionExtractor(root):
        root(X)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_root_in_torchscript_without_attention_is_just_that() -> None:
    with pytest.raises(CaptureError, match=r"captured no attention in RecursiveScriptModule"):
        AttentionExtractor(torch.jit.script(Plain())).get_attention(X)


@BOTH
def test_a_copy_made_meanwhile_takes_nothing_along(how: Callable[..., Tensor]) -> None:
    model = layers(how)
    with AttentionExtractor(model) as extractor:
        twin = copy.deepcopy(model)
        model(X)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in twin.modules())
    assert [sorted(vars(m)) for m in twin.modules()] == [sorted(vars(m)) for m in model.modules()]
    assert len(extractor.maps) == 2
    assert torch.equal(twin(X), model(X))


def test_a_model_pickles_meanwhile() -> None:
    model = Kernel()
    with AttentionExtractor(model):
        twin = pickle.loads(pickle.dumps(model))
        torch.save(model.state_dict(), io.BytesIO())
        model(X)
    assert not twin._forward_pre_hooks
    assert len(AttentionExtractor(twin).get_attention(X)) == 1


@BOTH
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_is_refused_and_does_not_break_the_model(how: Callable[..., Tensor]) -> None:
    model = layers(how)
    batch = torch.randn(3, 2, 6, 16)
    before = torch.vmap(model)(batch)
    part = Heads(lambda m, q, k, v: how(q, k, v))
    extractor = AttentionExtractor(nn.Sequential(model, part), strict=False)
    extractor.register_hooks()
    after = torch.vmap(model)(batch)
    part(X)
    with pytest.warns(UserWarning, match=r"0: it runs under torch\.vmap.*Call the model on a"):
        assert extractor.maps.names == ("1",)
    extractor.clear_hooks()
    assert torch.equal(before, after)
    with (
        pytest.raises(CaptureError, match=r"0: it runs under torch\.vmap"),
        AttentionExtractor(model),
    ):
        torch.vmap(model)(batch)


@BOTH
@pytest.mark.parametrize("transform", ["grad", "functional_call", "vjp", "grad_and_value"])
def test_transforms_of_torch_func_are_captured(how: Callable[..., Tensor], transform: str) -> None:
    model = layers(how)
    parameters = dict(model.named_parameters())

    def loss(given: dict[str, Tensor]) -> Tensor:
        out: Tensor = torch.func.functional_call(model, given, (X,))
        return out.sum()

    run: dict[str, Callable[[], Any]] = {
        "grad": lambda: torch.func.grad(loss)(parameters),
        "functional_call": lambda: loss(parameters),
        "vjp": lambda: torch.func.vjp(loss, parameters),
        "grad_and_value": lambda: torch.func.grad_and_value(loss)(parameters),
    }
    with AttentionExtractor(model) as extractor:
        run[transform]()
    expected = AttentionExtractor(model).get_attention(X)
    for weights, wanted in zip(extractor.maps, expected, strict=True):
        assert not torch._C._functorch.is_functorch_wrapped_tensor(weights)
        torch.testing.assert_close(weights, wanted, atol=1e-6, rtol=0)


@BOTH
def test_other_parameters_by_functional_call_are_what_is_captured(
    how: Callable[..., Tensor],
) -> None:
    model, other = layers(how), layers(how)
    for parameter in other.parameters():
        parameter.data += 0.3
    with AttentionExtractor(model) as extractor:
        torch.func.functional_call(model, dict(other.named_parameters()), (X,))
    expected = AttentionExtractor(other).get_attention(X)
    assert all(torch.equal(a, b) for a, b in zip(extractor.maps, expected, strict=True))


@BOTH
def test_a_meta_model_has_no_weights_to_show(how: Callable[..., Tensor]) -> None:
    model = layers(how).to("meta")
    with pytest.raises(CaptureError, match=r"on the meta device or fake.*to_empty"):
        AttentionExtractor(model).get_attention(X.to("meta"))


@BOTH
def test_a_fake_model_has_no_weights_to_show(how: Callable[..., Tensor]) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = layers(how)
        with pytest.raises(CaptureError, match=r"on the meta device or fake"):
            AttentionExtractor(model).get_attention(torch.randn(2, 6, 16))


@BOTH
@pytest.mark.parametrize("way", ["module", "in place", "function"])
def test_a_compiled_part_of_an_eager_model(how: Callable[..., Tensor], way: str) -> None:
    model: Any = layers(how)
    expected = AttentionExtractor(model).get_attention(X)
    if way == "module":
        model[0] = torch.compile(model[0], backend="eager")
    elif way == "in place":
        model[0].compile(backend="eager")
    else:
        attend = model[0].attend
        model[0].attend = torch.compile(attend, backend="eager")
    with torch.no_grad():
        model(X)
    found = AttentionExtractor(model).get_attention(X)
    assert found.names == ("0", "1")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@BOTH
def test_a_model_compiled_in_place_is_numbered_by_call(how: Callable[..., Tensor]) -> None:
    model = layers(how)
    model.compile(backend="eager")
    with AttentionExtractor(model) as extractor:
        model(X)
        model(X)
    assert [(la.index, la.call) for la in extractor.maps.layers] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert not model._forward_pre_hooks


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_traced_part_is_told() -> None:
    model = nn.Sequential(Kernel(), torch.jit.trace(Hand(), X))
    with pytest.raises(CaptureError, match=r"1: is TorchScript that computes attention"):
        AttentionExtractor(model).get_attention(X)


@BOTH
def test_a_model_in_data_parallel_has_its_paths_inside(how: Callable[..., Tensor]) -> None:
    wrapped = nn.DataParallel(layers(how))
    assert AttentionExtractor(wrapped).get_attention(X).names == ("module.0", "module.1")
    with AttentionExtractor(wrapped.module) as extractor:
        wrapped(X)
    assert extractor.maps.names == ("0", "1")


@BOTH
def test_autocast_to_bfloat16(how: Callable[..., Tensor]) -> None:
    model = layers(how)
    expected = AttentionExtractor(model).get_attention(X)
    with torch.autocast("cpu", dtype=torch.bfloat16), AttentionExtractor(model) as extractor:
        model(X)
    for layer, weights in zip(extractor.maps.layers, expected, strict=True):
        assert layer.status == "exact"
        torch.testing.assert_close(layer.weights.float(), weights, atol=0.02, rtol=0)


@BOTH
def test_a_model_traced_by_fx(how: Callable[..., Tensor]) -> None:
    model = Kernel() if how is by_kernel else Hand()
    graph = torch.fx.symbolic_trace(model)
    expected = AttentionExtractor(model).get_attention(X)
    assert torch.equal(AttentionExtractor(graph).get_attention(X)[0], expected[0])


@pytest.mark.parametrize("make", [Kernel, Hand])
def test_edge_sizes(make: Callable[[], nn.Module]) -> None:
    assert AttentionExtractor(make()).get_attention(X[:, :1])[0].shape == (2, 1, 1, 1)
    assert AttentionExtractor(make()).get_attention(X[:0])[0].shape == (0, 1, 6, 6)
    assert AttentionExtractor(make()).get_attention(X[:, :0])[0].shape == (2, 1, 0, 0)
