"""Sequences of two sides, of one token, and heads named twice: each is measured as itself, once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attncheck import AttentionExtractor, profile_dataset, profile_model

transformers = pytest.importorskip("transformers")

APART = torch.arange(10, 22)[None]
REPEATED = torch.tensor([[5, 6, 7, 8] * 3])


def t5() -> torch.nn.Module:
    sizes: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_heads": 4, "vocab_size": 50}
    config = transformers.T5Config(num_layers=1, decoder_start_token_id=0, **sizes)
    torch.manual_seed(0)
    model: torch.nn.Module = transformers.T5Model(config).eval()
    return model


def duplicates(encoder: torch.Tensor, decoder: torch.Tensor) -> dict[str, float]:
    """Mass on earlier copies of the same token, NaN without any, of each side's own layers."""
    profile = profile_model(t5(), input_ids=encoder, decoder_input_ids=decoder)
    found = {}
    for layer, masses in zip(profile.layers, profile["duplicate_token"], strict=True):
        if layer.kind != "cross":
            found[layer.name.split(".")[0]] = float(torch.as_tensor(masses).sum())
    return found


def test_each_side_is_measured_by_its_own_tokens() -> None:
    found = duplicates(APART, REPEATED)
    assert found["decoder"] > 0.1
    assert not found["encoder"] > 0
    found = duplicates(REPEATED, APART)
    assert found["encoder"] > 0.1
    assert not found["decoder"] > 0


def test_maps_have_tokens_where_all_layers_read_the_same() -> None:
    call = {"input_ids": APART, "decoder_input_ids": REPEATED}
    assert AttentionExtractor(t5()).get_attention(**call).tokens is None
    encoder = AttentionExtractor(t5(), layers="encoder.*").get_attention(**call)
    assert encoder.tokens == (tuple(range(10, 22)),)
    decoder = AttentionExtractor(t5(), layers=["decoder.*SelfAttention"]).get_attention(**call)
    assert decoder.tokens == ((5, 6, 7, 8) * 3,)


def test_lengths_that_agree_by_chance_add_up_with_others() -> None:
    batches = [
        {"input_ids": APART, "decoder_input_ids": REPEATED[:, :5]},
        {"input_ids": APART[:, :7], "decoder_input_ids": REPEATED[:, :7]},
    ]
    profile = profile_dataset(t5(), batches, progress=False)
    assert len(profile.layers) == 3


def test_a_sequence_of_one_token_adds_up_with_longer_ones() -> None:
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 50}
    config = transformers.GPT2Config(**sizes, attn_implementation="eager")
    model = transformers.GPT2Model(config).eval()
    profile = profile_dataset(model, [APART, APART[:, :1]], progress=False)
    assert profile.layers[0].causal


def test_a_head_is_measured_once() -> None:
    with pytest.raises(ValueError, match="heads: names a head twice"):
        AttentionExtractor(t5(), heads=[0, 0]).get_attention(
            input_ids=APART, decoder_input_ids=REPEATED
        )
