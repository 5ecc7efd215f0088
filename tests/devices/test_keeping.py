"""What is kept of a capture, where, in what form, and when it is copied."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attncheck import AttentionExtractor, AttentionMaps
from tests.devices.support import (
    HALF,
    Layer,
    assert_rebuilt,
    assert_same_maps,
    doubled,
    exact_weights,
    inputs,
    layers,
    name_of,
)

N = 48


def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def by_hand(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.mT / 4).softmax(-1) @ value


def expected_of(model: Any, x: Tensor) -> AttentionMaps:
    return AttentionExtractor(doubled(model)).get_attention(x.cpu().double())


@pytest.mark.parametrize("attend", [causal, by_hand])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"device": None},
        {"device": None, "store": "qk"},
        {"store": "qk"},
        {"dtype": torch.float64},
        {"queries": [-1, 3], "device": None},
        {"heads": [2, 0]},
        {"layers": [-1], "store": "qk"},
    ],
    ids=lambda options: " ".join(f"{name}={value}" for name, value in options.items()) or "default",
)
def test_every_form_holds_the_same_weights(
    options: dict[str, Any], attend: Callable[..., Tensor], attention_device: torch.device
) -> None:
    model, x = layers(attend, attention_device), inputs(attention_device, N)
    found = AttentionExtractor(model, **options).get_attention(x)
    kept = {name: options[name] for name in ("queries", "heads", "layers") if name in options}
    expected = AttentionExtractor(doubled(model), **kept).get_attention(x.cpu().double())
    assert_same_maps(found, expected)
    where = attention_device.type if options.get("device", "cpu") is None else "cpu"
    assert {layer.weights.device.type for layer in found.layers} == {where}
    assert {layer.model_device.split(":")[0] for layer in found.layers} == {attention_device.type}
    if "dtype" in options:
        assert {layer.weights.dtype for layer in found.layers} == {torch.float64}


def overwrites(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Attention whose query, key and value are gone right after it, as in a reused buffer."""

    def then_overwrite(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = query.clone(), key.clone(), value.clone()
        out = attend(query, key, value)
        for part in (query, key, value):
            part.fill_(7.0)
        return out

    return then_overwrite


@pytest.mark.parametrize("store", ["weights", "qk"])
@pytest.mark.parametrize("device", ["cpu", None])
@pytest.mark.parametrize("attend", [causal, by_hand])
def test_what_the_model_overwrites_is_copied_before(
    attend: Callable[..., Tensor], device: str | None, store: Any, attention_device: torch.device
) -> None:
    model = layers(overwrites(attend), attention_device)
    x = inputs(attention_device, 160)
    with torch.no_grad(), AttentionExtractor(model, device=device, store=store) as extractor:
        model(x)
    for layer, module in zip(extractor.maps.layers, model, strict=True):
        visible = torch.ones(160, 160).tril().bool() if attend is causal else None
        assert_rebuilt(layer.weights, exact_weights(*module.last, visible=visible))


@pytest.mark.parametrize("device", ["cpu", None])
def test_a_model_on_a_stream_of_its_own(device: str | None, attention_device: torch.device) -> None:
    model, x = layers(overwrites(causal), attention_device), inputs(attention_device, 300)
    stream: Any = nullcontext()
    if x.is_cuda:
        own = torch.cuda.Stream(attention_device)
        own.wait_stream(torch.cuda.current_stream(attention_device))
        stream = torch.cuda.stream(own)
    with torch.no_grad(), stream, AttentionExtractor(model, device=device) as extractor:
        model(x)
    visible = torch.ones(300, 300).tril().bool()
    for layer, module in zip(extractor.maps.layers, model, strict=True):
        assert_rebuilt(layer.weights, exact_weights(*module.last, visible=visible))


@pytest.mark.parametrize("dtype", HALF, ids=name_of)
@pytest.mark.parametrize("attend", [causal, by_hand])
def test_autocast(
    attend: Callable[..., Tensor], dtype: torch.dtype, attention_device: torch.device
) -> None:
    model, x = layers(attend, attention_device), inputs(attention_device, N)
    kind = attention_device.type
    with torch.no_grad(), torch.autocast(kind, dtype):
        before = model(x)
        with AttentionExtractor(model) as extractor:
            during = model(x)
        assert torch.is_autocast_enabled(kind)
    assert torch.equal(during, before)
    assert during.dtype == dtype
    assert_same_maps(extractor.maps, expected_of(model, x), dtype)
    if attend is causal:
        visible = torch.ones(N, N).tril().bool()
        assert_rebuilt(extractor.maps[1], exact_weights(*model[1].last, visible=visible))


@sdpa_kernel(SDPBackend.MATH)  # other kernels add gradients up in any order
def test_gradients_are_as_before(attention_device: torch.device) -> None:
    model, x = layers(causal, attention_device), inputs(attention_device, N)
    model(x).square().sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    with AttentionExtractor(model) as extractor:
        model(x).square().sum().backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))
    assert not any(weights.requires_grad for weights in extractor.maps)


def test_a_compiled_model_runs_eagerly_while_it_is_watched(attention_device: torch.device) -> None:
    model, x = layers(causal, attention_device), inputs(attention_device, N)
    compiled = torch.compile(model, backend="inductor" if x.is_cuda else "eager")
    with torch.no_grad():
        before = compiled(x)
        with AttentionExtractor(compiled) as extractor:
            during = compiled(x)
        after = compiled(x)
    torch.testing.assert_close(during, before, atol=1e-5, rtol=1e-5)
    assert torch.equal(after, before)
    assert all("eager" in layer.note for layer in extractor.maps.layers)
    for layer, theirs in zip(extractor.maps.layers, expected_of(model, x).layers, strict=True):
        torch.testing.assert_close(layer.weights.double(), theirs.weights, atol=1e-5, rtol=0)


@pytest.mark.parametrize("attend", [causal, by_hand])
def test_a_model_on_the_cpu_may_be_kept_on_the_device(
    attend: Callable[..., Tensor], attention_device: torch.device
) -> None:
    model, x = layers(attend, torch.device("cpu")), inputs(torch.device("cpu"), N)
    found = AttentionExtractor(model, device=attention_device).get_attention(x)
    assert {weights.device.type for weights in found} == {attention_device.type}
    assert_same_maps(found, expected_of(model, x))


def test_maps_are_saved_and_loaded(tmp_path: Any, attention_device: torch.device) -> None:
    model, x = layers(causal, attention_device), inputs(attention_device, N)
    found = AttentionExtractor(model, device=None).get_attention(x)
    path = tmp_path / "maps.safetensors"
    found.save(path)
    again = AttentionMaps.load(path)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(again, found, strict=True))
    assert again.names == found.names


def test_cross_attention_and_many_calls(attention_device: torch.device) -> None:
    model = Layer(by_hand).to(attention_device).eval()
    queries, keys = inputs(attention_device, 5), inputs(attention_device, 11)
    with torch.no_grad(), AttentionExtractor(model) as extractor:
        for length in (3, 11, 7):
            model(queries, keys[:, :length])
    assert [layer.shape[-1] for layer in extractor.maps.layers] == [3, 11, 7]
    assert [layer.call for layer in extractor.maps.layers] == [0, 1, 2]
    expected = exact_weights(*model.last)
    torch.testing.assert_close(extractor.maps[2].double(), expected, atol=1e-5, rtol=0)
