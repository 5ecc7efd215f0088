"""Models of transformers, tiny and random, against the same on the CPU in float64."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch

from attncheck import AttentionExtractor, AttentionMaps, compare_backends, profile_model
from tests.devices.support import DTYPES, assert_same_maps, name_of, on

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")

LENGTH = 20
IDS = torch.randint(3, 60, (2, LENGTH), generator=torch.Generator().manual_seed(1))
RIGHT = (torch.arange(LENGTH) < torch.tensor([[LENGTH], [LENGTH - 6]])).long()
TEXT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60}
GQA = {**TEXT, "num_key_value_heads": 2, "intermediate_size": 64, "head_dim": 16}
GPT2 = {"n_layer": 2, "n_head": 4, "n_embd": 64, "vocab_size": 60}

MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2, {}),
    "gpt2 left padding": ("GPT2", GPT2, {"attention_mask": RIGHT.flip(1)}),
    "llama": ("Llama", GQA, {}),
    "llama padding": ("Llama", GQA, {"attention_mask": RIGHT}),
    "bert": ("Bert", {**TEXT, "intermediate_size": 64}, {"attention_mask": RIGHT}),
    "bloom": ("Bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 60}, {}),
    "gemma2": ("Gemma2", {**GQA, "sliding_window": 8, "attn_logit_softcapping": 2.0}, {}),
    "gpt_oss": (
        "GptOss",
        {**GQA, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 8},
        {},
    ),
}
BACKENDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(MODELS, ("sdpa", "eager", "flex_attention")),
    **dict.fromkeys(["gpt2", "gpt2 left padding"], ("sdpa", "eager")),
    "bloom": ("eager",),  # a softmax of its own
    "gemma2": ("eager", "flex_attention"),
    "gpt_oss": ("eager", "flex_attention"),
}
"""What each model can be set to, its default first."""


def _case(name: str, backend: str) -> Any:
    sinks = name == "gpt_oss" and backend == "flex_attention"  # transformers: not on a CPU
    return pytest.param(name, backend, marks=pytest.mark.gpu if sinks else ())


CASES = [_case(name, backend) for name in MODELS for backend in BACKENDS[name]]


@cache
def made(name: str) -> Any:
    family, options, _ = MODELS[name]
    if not hasattr(transformers, f"{family}Model"):
        pytest.skip(f"this transformers has no {family}")
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**options)
    model = getattr(transformers, f"{family}Model")(config).eval()
    for tensor in model.parameters():
        tensor.data *= 1 + (tensor.ndim > 1)  # scores that differ
    return model


def build(name: str, backend: str, device: torch.device | str, dtype: torch.dtype) -> Any:
    model = copy.deepcopy(made(name))
    model.set_attn_implementation(backend)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # others know no float64
    assert model.config._attn_implementation == backend
    return model.to(device, dtype)


def given(name: str, device: torch.device | str) -> dict[str, Any]:
    return on(torch.device(device), {"input_ids": IDS, **MODELS[name][2]})  # type: ignore[no-any-return]


@cache
def reference(name: str, dtype: torch.dtype) -> AttentionMaps:
    """Eager in float64 on the CPU, of parameters rounded to the dtype."""
    model = build(name, "eager", "cpu", dtype).double()
    return AttentionExtractor(model).get_attention(**given(name, "cpu"))


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_weights_are_those_of_float64(
    name: str, backend: str, attention_device: torch.device
) -> None:
    model = build(name, backend, attention_device, torch.float32)
    inputs = given(name, attention_device)
    with torch.no_grad():
        before = model(**inputs)[0] if backend != "flex_attention" else None
        with AttentionExtractor(model) as extractor:
            during = model(**inputs)[0]
    if before is not None:
        assert torch.equal(during, before)
    assert model.config._attn_implementation == backend
    expected = reference(name, torch.float32)
    assert_same_maps(extractor.maps, expected)
    for ours, theirs in zip(extractor.maps.layers, expected.layers, strict=True):
        assert (ours.sink_mass is None) == (theirs.sink_mass is None)
        if ours.sink_mass is not None:
            assert theirs.sink_mass is not None
            torch.testing.assert_close(
                ours.sink_mass.cpu().double(), theirs.sink_mass, atol=1e-5, rtol=0
            )
    assert extractor.tokens == tuple(map(tuple, IDS.tolist()))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=name_of)
@pytest.mark.parametrize("name", ["gpt2", "llama padding", "bert", "bloom", "gemma2"])
def test_weights_in_half_precision(
    name: str, dtype: torch.dtype, attention_device: torch.device
) -> None:
    model = build(name, BACKENDS[name][0], attention_device, dtype)
    maps = AttentionExtractor(model).get_attention(**given(name, attention_device))
    assert_same_maps(maps, reference(name, dtype), dtype)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["GPT2", "Llama"])
def test_generate(family: str, backend: str, attention_device: torch.device) -> None:
    options = GPT2 if family == "GPT2" else GQA
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**options)
    model = getattr(
        transformers, f"{family}LMHeadModel" if family == "GPT2" else "LlamaForCausalLM"
    )(config).eval()
    model.generation_config.pad_token_id = model.generation_config.eos_token_id = None
    asked: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    exact = copy.deepcopy(model).double()
    exact.set_attn_implementation("eager")
    with AttentionExtractor(exact) as expected:
        exact.generate(IDS[:1], attention_mask=torch.ones_like(IDS[:1]), **asked)
    model.set_attn_implementation(backend)
    model = model.to(attention_device)
    ids = IDS[:1].to(attention_device)
    asked["attention_mask"] = torch.ones_like(ids)
    before = model.generate(ids, **asked)
    with AttentionExtractor(model) as extractor:
        during = model.generate(ids, **asked)
    assert torch.equal(during, before)
    assert len(extractor.maps) == 8
    assert [layer.n_query for layer in extractor.maps.layers[::2]] == [LENGTH, 1, 1, 1]
    assert_same_maps(extractor.maps, expected.maps)


def test_backends_side_by_side(attention_device: torch.device) -> None:
    model = build("llama", "sdpa", attention_device, torch.float32)
    comparison = compare_backends(
        model, IDS.to(attention_device), backends=["eager", "sdpa", "flex_attention"]
    )
    assert comparison.agree, str(comparison)
    assert all(layer.mass_moved < 1e-5 for layer in comparison.layers)


@pytest.mark.parametrize(
    "name", ["gpt2 left padding", "llama padding", "bloom", "gemma2", "gpt_oss"]
)
def test_profile_of_a_model(name: str, attention_device: torch.device) -> None:
    model = build(name, BACKENDS[name][0], attention_device, torch.float32)
    found = profile_model(model, **given(name, attention_device))
    exact = build(name, "eager", "cpu", torch.float64)
    expected = profile_model(exact, **given(name, "cpu"))
    assert found.names == expected.names
    for measure in expected.measures:
        size = 1 if expected[measure].max() <= 1 else LENGTH
        error = abs(found[measure] - expected[measure])
        assert not (error > 2e-5 * size).any(), f"{measure}: {error.max():.2g}"
        assert (
            (found[measure] == found[measure]) == (expected[measure] == expected[measure])
        ).all()
