"""The promises on tiny models of transformers, which need no configuration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import attncheck
from attncheck import CheckFailure, ModelSubject, check_model

transformers = pytest.importorskip("transformers")


def small(name: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "intermediate_size": 48, "pad_token_id": 0}
    config = getattr(transformers, f"{name}Config")(**{**sizes, **settings})
    model = getattr(transformers, f"{name}Model")(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(4)
    return model


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(50)
    yield
    transformers.logging.set_verbosity(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "settings", "kind", "applicable"),
    [
        ("Llama", {"num_key_value_heads": 2}, "decoder", 10),
        ("Bert", {}, "encoder", 7),
        ("Mistral", {"num_key_value_heads": 2, "sliding_window": 4}, "decoder", 11),
        ("ViT", {"image_size": 16, "patch_size": 8}, "vision", 5),
        (
            "T5",
            {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
            "encoder-decoder",
            8,
        ),
    ],
)
def test_sound_models_keep_their_promises(
    name: str, settings: dict[str, Any], kind: str, applicable: int, dtype: torch.dtype
) -> None:
    model = small(name, **settings).to(dtype)
    report = check_model(model)
    assert ModelSubject.of(model).kind == kind
    passed = [outcome for outcome in report.outcomes if outcome.status == "passed"]
    in_half = int(dtype == torch.bfloat16 and kind in ("decoder", "encoder"))
    assert len(passed) == applicable - in_half, report  # positions are judged in float32 only


def test_embedded_inputs_work_as_token_ids_do() -> None:
    vectors = torch.randn(2, 10, 32)
    report = check_model(small("Llama", num_key_value_heads=2), {"inputs_embeds": vectors})
    assert sum(outcome.status == "passed" for outcome in report.outcomes) == 10, report


def test_a_bug_that_asking_for_attention_brings_out() -> None:
    """Falcon's sdpa path leaves the causal mask out when attention is asked for."""
    model = small("Falcon")
    if model.config._attn_implementation != "sdpa":
        pytest.skip("this transformers does not run Falcon under sdpa")
    plain = model(torch.arange(12)[None]).last_hidden_state
    asked = model(torch.arange(12)[None], output_attentions=True).last_hidden_state
    if torch.allclose(plain, asked, atol=1e-4):
        pytest.skip("this transformers has mended it")
    with pytest.raises(CheckFailure, match="with output_attentions=True"):
        attncheck.assert_no_future_leakage(model)
    with pytest.raises(CheckFailure, match="backends disagree"):
        attncheck.assert_backends_agree(model)


def test_a_mask_that_only_sdpa_drops_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``DogeForCausalLM`` of transformers 5.17 did, planted in one layer of Llama."""
    model = small("Llama", num_key_value_heads=2)
    attention = model.layers[1].self_attn
    original = attention.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if attention.config._attn_implementation == "sdpa":
            monkeypatch.setattr(attention, "is_causal", False)
            kwargs["attention_mask"] = None
        return original(*args, **kwargs)

    monkeypatch.setattr(attention, "forward", forward)
    with pytest.raises(CheckFailure) as caught:
        attncheck.assert_backends_agree(model)
    facts = dict(caught.value.finding.facts)
    assert facts["layer"] == "layers.1.self_attn parts first"
    assert caught.value.finding.offenders[0].head.startswith("L1H")
    with pytest.raises(CheckFailure, match="sees the future"):
        attncheck.assert_no_future_leakage(model)
    assert model.config._attn_implementation == "sdpa"


def test_left_padding_gets_the_positions_that_generate_gives() -> None:
    model = small("GPT2", n_embd=32, n_layer=2, n_head=4)
    attncheck.assert_padding_invariant(model, side="left")


@attncheck.parametrize_with_model_checks(
    [lambda: small("Llama", num_key_value_heads=2)], select=["mask", "cache"]
)
def test_the_door_for_suites(model: Any, check: Any) -> None:
    check(model)
