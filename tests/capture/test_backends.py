"""Backends side by side, with a planted copy of a real bug: a mask lost in one backend only."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from attncheck import compare_backends

transformers = pytest.importorskip("transformers")

IDS = torch.arange(3, 15)[None]


def llama(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return transformers.LlamaModel(config).eval()


def lose_the_mask(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """Make one backend's mask show every key, as a custom mask branch of that backend did."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    def all_seen(*_: Any, q_length: int, kv_length: int, **__: Any) -> torch.Tensor:
        return torch.ones(1, 1, q_length, kv_length, dtype=torch.bool)

    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, backend, all_seen)


def test_backends_of_a_sound_model_agree() -> None:
    comparison = compare_backends(llama(), IDS)
    assert comparison.agree
    assert comparison.first is None
    assert [layer.index for layer in comparison.layers] == [0, 1, 2]
    assert all(layer.mass_moved < 1e-6 and layer.output < 1e-5 for layer in comparison.layers)
    assert "the same attention in every layer" in str(comparison)


def test_a_mask_lost_under_sdpa_only_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    lose_the_mask(monkeypatch, "sdpa")
    comparison = compare_backends(llama(), IDS)
    assert not comparison.agree
    assert comparison.first is not None
    assert (comparison.first.backend, comparison.first.index) == ("sdpa", 0)
    assert comparison.first.future > 0.5
    assert comparison.first.future_in_reference == 0
    assert comparison.first.output > 0.01
    assert str(comparison).startswith(
        "sdpa departs from eager first in layer 0, layers.0.self_attn"
    )


def test_the_reference_may_be_the_faulty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    lose_the_mask(monkeypatch, "sdpa")
    comparison = compare_backends(llama(), IDS, backends=["sdpa", "eager"])
    assert comparison.first is not None
    assert comparison.first.future == 0
    assert comparison.first.future_in_reference > 0.5


@pytest.mark.parametrize("padding", [slice(0, 5), slice(8, None), slice(None)])
@pytest.mark.parametrize("backends", [["eager", "sdpa"], ["sdpa", "eager"]])
def test_padding_rows_do_not_count(padding: slice, backends: list[str]) -> None:
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, padding] = 0
    comparison = compare_backends(
        llama(), IDS.expand(2, -1), attention_mask=mask, backends=backends
    )
    assert comparison.agree
    assert all(layer.output < 1e-5 for layer in comparison.layers)


def test_outputs_that_differ_are_told_beside_padding() -> None:
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0
    model = llama()

    def disturb(module: nn.Module, _: Any, output: Any) -> Any:
        if model.config._attn_implementation == "sdpa":
            output[0][1, 3] += output[0].abs().max()
        return output

    handle = model.layers[2].self_attn.register_forward_hook(disturb)
    comparison = compare_backends(model, IDS.expand(2, -1), attention_mask=mask)
    handle.remove()
    assert comparison.layers[2].output > 0.5
    assert all(layer.output < 1e-5 for layer in comparison.layers[:2])


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_three_backends_and_json() -> None:
    comparison = compare_backends(llama(), IDS, backends=["eager", "sdpa", "flex_attention"])
    assert comparison.backends == ("sdpa", "flex_attention")
    assert len(comparison.layers) == 6
    held = json.loads(comparison.to_json())
    assert held["agree"] is True
    assert held["layers"][5]["backend"] == "flex_attention"


def test_model_is_left_as_it_was() -> None:
    model = llama()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert model.config._attn_implementation == "sdpa"
    compare_backends(model, IDS, backends=["sdpa", "eager"])
    assert model.config._attn_implementation == "sdpa"
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_backend_is_put_back_after_an_error() -> None:
    model = llama()
    with pytest.raises(IndexError):
        compare_backends(model, IDS + 10_000)
    assert model.config._attn_implementation == "sdpa"


def test_tolerance_can_be_set() -> None:
    comparison = compare_backends(llama(), IDS, atol=0.0)
    assert any(layer.departs for layer in comparison.layers)


def test_what_cannot_be_compared_is_said() -> None:
    with pytest.raises(TypeError, match="cannot switch its attention backend"):
        compare_backends(nn.Linear(2, 2), torch.ones(2))
    with pytest.raises(ValueError, match="two different names"):
        compare_backends(llama(), IDS, backends=["sdpa", "sdpa"])
    with pytest.raises(ValueError, match="takes no 'nonsense'"):
        compare_backends(llama(), IDS, backends=["sdpa", "nonsense"])
    for backends, words in (
        ("sdpa", "'sdpa' is str; expected two names or more"),
        (3, "3 is int; expected two names or more"),
        (["sdpa", None], "None is NoneType; expected names"),
    ):
        with pytest.raises(TypeError, match=f"^backends: {words}"):
            compare_backends(llama(), IDS, backends=backends)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("atol", "error"),
    [("x", TypeError), (True, TypeError), (-1, ValueError), (float("nan"), ValueError)],
)
def test_a_tolerance_that_is_none_is_named(atol: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^atol: got .*; expected a"):
        compare_backends(llama(), IDS, atol=atol)
