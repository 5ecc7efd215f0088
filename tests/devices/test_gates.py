"""What is refused, what is left behind, and what memory is taken and given back."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncheck import AttentionExtractor, CaptureError, profile_model
from attncheck.capture import memory
from attncheck.capture.recorders import sdpa
from tests.capture.test_no_trace import state
from tests.devices.support import DTYPES, inputs, layers, name_of


def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def by_hand(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.mT / 4).softmax(-1) @ value


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("wrong", [{"scale": 2.0}, {"is_causal": False}], ids=lambda w: str(w))
def test_an_unfaithful_layer_is_noticed(
    wrong: dict[str, Any],
    dtype: torch.dtype,
    attention_device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = sdpa._as_call

    def lying(module: Any, path: Any, function: Any, options: Any, output: Any) -> Any:
        return honest(module, path, function, {**options, **wrong}, output)

    model, x = layers(causal, attention_device, dtype), inputs(attention_device, 40, dtype)
    AttentionExtractor(model).get_attention(x)
    monkeypatch.setattr(sdpa, "_as_call", lying)
    for store in ("weights", "qk", "profile"):
        extractor = AttentionExtractor(model, store=store)  # type: ignore[arg-type]
        with pytest.raises(CaptureError, match=r"weights @ value differs from the output of sdpa"):
            extractor.watch(x)
    with pytest.warns(UserWarning, match="not faithfully"):
        maps = AttentionExtractor(model, strict=False).get_attention(x)
    assert [layer.status.partition(":")[0] for layer in maps.layers] == ["unfaithful"] * 2


def test_not_a_number_is_not_the_captures_fault(attention_device: torch.device) -> None:
    model, x = layers(causal, attention_device), inputs(attention_device, 40)
    x[0, 3] = torch.nan
    layer = AttentionExtractor(model).get_attention(x).layers[0]
    assert layer.status == "exact"
    assert layer.weights[0].isnan().any()
    assert not layer.weights[1].isnan().any()
    with pytest.warns(UserWarning, match=r"NaN|not finite|infinite"):
        assert profile_model(model, x).not_finite


class Breaks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyboardInterrupt("on purpose")


def states(model: nn.Module, device: torch.device) -> dict[str, Any]:
    found = state(model)
    if device.type == "cuda":
        found["random on it"] = torch.cuda.get_rng_state(device).sum().item()
        found["current"] = torch.cuda.current_device(), torch.cuda.current_stream(device)
        found["tf32"] = torch.backends.cuda.matmul.allow_tf32
    found["precision"] = torch.get_float32_matmul_precision()
    found["default"] = torch.get_default_device(), torch.get_default_dtype()
    return found


@pytest.mark.parametrize("attend", [causal, by_hand])
@pytest.mark.parametrize("how", ["weights", "qk", "profile", "interrupted"])
def test_no_trace_is_left(how: Any, attend: Any, attention_device: torch.device) -> None:
    model, x = layers(attend, attention_device), inputs(attention_device, 40)
    if how == "interrupted":
        model.append(Breaks())
    model[0].train()
    before = states(model, attention_device)
    if how == "interrupted":
        with pytest.raises(KeyboardInterrupt, match="on purpose"):
            AttentionExtractor(model).get_attention(x)
    else:
        AttentionExtractor(model, store=how).watch(x)
    assert states(model, attention_device) == before


def test_the_estimate_refuses_before_allocating(attention_device: torch.device) -> None:
    """Two layers of 2 x 4 x 1200 x 1200 float32 weights and what making one takes."""
    model, x = layers(causal, attention_device), inputs(attention_device, 1200)
    layer = 2 * 4 * 1200 * 1200 * 4
    with torch.no_grad():
        model(x)
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats(x.device)
    before = torch.cuda.memory_allocated(x.device) if x.is_cuda else 0
    for limit in (2 * layer, 1e-6):
        extractor = AttentionExtractor(model, device=None, memory_limit=limit)
        with pytest.raises(CaptureError, match=r"Refused at 0, before allocating") as caught:
            extractor.watch(x)
        assert f"on {attention_device.type}" in str(caught.value)
        assert "2 layers of 2 x 4 x 1200 x 1200 float32 weights" in str(caught.value)
    if x.is_cuda:
        assert torch.cuda.max_memory_allocated(x.device) - before < layer
    AttentionExtractor(model, device=None, memory_limit=layer, store="qk").watch(x)


def test_free_memory_is_known(attention_device: torch.device) -> None:
    free = memory.free_memory(attention_device)
    assert free is not None
    assert 1 << 20 < free < 1 << 50
    if attention_device.type == "cuda":
        held = torch.empty(64 << 20, dtype=torch.uint8, device=attention_device)
        less = memory.free_memory(attention_device)
        assert less is not None
        assert free - less >= held.numel()


@pytest.fixture
def level() -> Callable[[], int]:
    """What is allocated on the device after the garbage is gone."""

    def measure() -> int:
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    return measure


@pytest.mark.gpu
@pytest.mark.parametrize("attend", [causal, by_hand])
@pytest.mark.parametrize(
    "options",
    [{}, {"device": None}, {"device": None, "store": "qk"}, {"store": "profile"}],
    ids=str,
)
def test_memory_is_given_back(
    options: dict[str, Any], attend: Any, level: Any, attention_device: torch.device
) -> None:
    model, x = layers(attend, attention_device), inputs(attention_device, 300)
    with torch.no_grad():
        model(x)
        AttentionExtractor(model, **options).watch(x)  # what is made once, and kept
        model(x)
    before = level()
    for _ in range(3):
        extractor = AttentionExtractor(model, **options)
        with torch.no_grad(), extractor:
            model(x)
        held = extractor.profile if "profile" in str(options) else extractor.maps
        del extractor, held
    model(x).sum().item()
    with torch.no_grad():
        model(x)
    assert level() <= before + 4096


@pytest.mark.gpu
def test_captures_on_the_cpu_hold_nothing_on_the_device(
    level: Any, attention_device: torch.device
) -> None:
    model, x = layers(causal, attention_device), inputs(attention_device, 600)
    with torch.no_grad():
        AttentionExtractor(model).watch(x)
        before = level()
        extractor = AttentionExtractor(model)
        extractor.watch(x)
        model(x)
    assert level() <= before + 4096
    assert all(layer.weights.device.type == "cpu" for layer in extractor.maps.layers)


@pytest.mark.gpu
def test_a_profile_takes_memory_linear_in_the_length(
    level: Any, attention_device: torch.device
) -> None:
    model = layers(causal, attention_device, torch.bfloat16)
    taken = []
    for n in (2048, 8192):
        x = inputs(attention_device, n, torch.bfloat16, batch=1)
        profile_model(model, x)
        before = level()
        torch.cuda.reset_peak_memory_stats()
        profile_model(model, x)
        taken.append(torch.cuda.max_memory_allocated() - before)
    quadratic = 4 * 8192 * 8192 * 4
    assert taken[1] < 8 * max(taken[0], 8 << 20)
    assert taken[1] < quadratic
