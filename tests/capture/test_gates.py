"""What cannot be captured, or not faithfully, is an error that says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncheck import AttentionExtractor, CaptureError, LayerAttention
from attncheck.capture.recorders import sdpa
from tests.capture.reference import Heads, stack

X = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(1))


def attend(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


WRONG = {
    "scale": {"scale": 5.0},
    "alignment": {"is_causal": False},
    "mask": {"attn_mask": torch.ones(6, 6).tril().triu(-1).bool(), "is_causal": False},
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_rebuild_is_noticed(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = sdpa._as_call

    def lying(module: Any, path: Any, function: Any, options: Any, output: Any) -> Any:
        return honest(module, path, function, {**options, **WRONG[name]}, output)

    monkeypatch.setattr(sdpa, "_as_call", lying)
    model = stack(attend).to(dtype)
    with pytest.raises(CaptureError, match=r"0: weights @ value differs from the output of sdpa"):
        AttentionExtractor(model).get_attention(X.to(dtype))
    with pytest.warns(UserWarning, match="not faithfully"):
        maps = AttentionExtractor(model, strict=False).get_attention(X.to(dtype))
    assert [layer.status.partition(":")[0] for layer in maps.layers] == ["unfaithful"] * 2


def test_large_scores_raise_no_false_alarm() -> None:
    model = stack(attend)
    for module in model.children():
        assert isinstance(module, Heads)
        module.query.weight.data *= 100
        module.key.weight.data *= 100
    maps = AttentionExtractor(model).get_attention(X)
    assert [layer.status for layer in maps.layers] == ["exact", "exact"]


def test_not_a_number_in_the_model_is_not_the_captures_fault() -> None:
    model = stack(attend, 1)
    broken = X.clone()
    broken[0, 3] = torch.nan
    layer = AttentionExtractor(model).get_attention(broken).layers[0]
    assert layer.status == "exact"
    assert layer.weights[0].isnan().any()


def test_no_attention_at_all() -> None:
    with pytest.raises(CaptureError, match="captured no attention in Linear"):
        AttentionExtractor(nn.Linear(16, 16)).get_attention(X)
    with pytest.raises(CaptureError, match="captured no attention"):
        AttentionExtractor(nn.Linear(16, 16), strict=False).get_attention(X)


def test_a_model_that_was_not_called() -> None:
    model = stack(attend)
    with pytest.raises(CaptureError, match="was not called"), AttentionExtractor(model):
        stack(attend)(X)
    with pytest.raises(CaptureError, match="nothing captured yet"):
        AttentionExtractor(model).maps  # noqa: B018


class Bare(nn.Module):
    """Attention that TorchScript can compile."""

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


def test_torchscript_is_named() -> None:
    scripted = torch.jit.trace(Bare(), X)
    with pytest.raises(CaptureError, match="TorchScript"):
        AttentionExtractor(nn.Sequential(scripted)).get_attention(X)
    with pytest.raises(CaptureError, match=r"1: .*TorchScript"):
        AttentionExtractor(nn.Sequential(Bare(), scripted)).get_attention(X)


def test_torchscript_without_attention_is_fine() -> None:
    scripted = torch.jit.trace(nn.Linear(16, 16), X)
    assert len(AttentionExtractor(nn.Sequential(Bare(), scripted)).get_attention(X)) == 1


class ChunkedAttention(nn.Module):
    """Softmax attention of which only a part multiplies values."""

    def forward(self, x: Tensor) -> Tensor:
        return (x @ x.mT).softmax(-1)[..., :3] @ x[:, :3]


class MyAttention(nn.Module):
    """Attention in one mode, none in another."""

    def __init__(self, *, attends: bool) -> None:
        super().__init__()
        self.attends = attends

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x) if self.attends else x.cumsum(1)


class BothInOneAttention(nn.Module):
    """Two attentions in one module, one of which multiplies values only in part."""

    def forward(self, x: Tensor) -> Tensor:
        part = (x @ x.mT).softmax(-1)[..., :3] @ x[:, :3]
        return part + (x @ x.mT).softmax(-1) @ x


def test_one_missed_attention_beside_another_in_one_module() -> None:
    with pytest.raises(CaptureError, match="of several attentions in it, one: its softmax"):
        AttentionExtractor(BothInOneAttention()).get_attention(X)


class LeftoverAttention(nn.Module):
    """A softmax that an older version of the code multiplied with the values."""

    def __init__(self, returns: bool) -> None:
        super().__init__()
        self.returns = returns

    def forward(self, x: Tensor) -> Any:
        weights = (x @ x.mT).softmax(-1).to(torch.float64)
        output = F.scaled_dot_product_attention(x, x, x)
        return (output, weights) if self.returns else output


@pytest.mark.parametrize("returns", [False, True])
def test_a_softmax_that_nothing_takes_is_no_missed_attention(returns: bool) -> None:
    maps = AttentionExtractor(LeftoverAttention(returns)).get_attention(torch.randn(1, 2, 5, 4))
    assert len(maps.layers) == 1


def test_one_missed_layer_among_captured_ones() -> None:
    model = nn.Sequential(stack(attend), ChunkedAttention())
    with pytest.raises(CaptureError, match="1: its softmax over query and key was not seen"):
        AttentionExtractor(model).get_attention(X)
    with pytest.warns(UserWarning, match="1: its softmax"):
        assert len(AttentionExtractor(model, strict=False).get_attention(X)) == 2


def test_a_sibling_of_a_captured_class() -> None:
    model = nn.Sequential(MyAttention(attends=True), MyAttention(attends=False))
    with pytest.raises(CaptureError, match="1: no attention was seen in it, unlike in other My"):
        AttentionExtractor(model).get_attention(X)


class LinearAttention(nn.Module):
    """Attention by name, without a softmax over query and key."""

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(-1) @ (x.mT @ x)


class AttentionGate(nn.Module):
    """A gate that happens to be called attention."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean(1, keepdim=True).sigmoid()


def test_names_alone_raise_no_alarm() -> None:
    unused = MyAttention(attends=True)
    model = nn.Sequential(Bare(), LinearAttention(), AttentionGate())
    model.add_module("unused", nn.Module())
    model.unused.add_module("never_called", unused)  # type: ignore[union-attr, operator]
    with AttentionExtractor(model) as extractor:
        model[2](model[1](model[0](X)))
    assert extractor.maps.names == ("0",)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_named() -> None:
    ragged = torch.nested.nested_tensor([X[0, :3], X[1]], layout=torch.jagged)
    heads = ragged.unsqueeze(-2).transpose(1, 2)
    with pytest.raises(CaptureError, match="nested tensors"):
        AttentionExtractor(Bare()).get_attention(heads)


def test_an_error_of_the_consumer_surfaces() -> None:
    def consume(layer: LayerAttention) -> None:
        raise KeyError(layer.name)

    model = stack(attend)
    with pytest.raises(KeyError, match="0"), AttentionExtractor(model, on_layer=consume):
        model(X)
