"""Sequences of two sides, of one token, and heads named twice: each is measured as itself, once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attncheck import AttentionExtractor, HeadMonitor, profile_dataset, profile_model

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


def clip() -> torch.nn.Module:
    shared = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": 60, "bos_token_id": 1, "eos_token_id": 2, "intermediate_size": 32}
    vision = {"image_size": 12, "patch_size": 4, "intermediate_size": 32}
    config = transformers.CLIPConfig(
        text_config={**shared, **text}, vision_config={**shared, **vision}, projection_dim=16
    )
    model: torch.nn.Module = transformers.CLIPModel(config).eval()
    return model


def test_a_vision_tower_reads_no_tokens_though_it_has_as_many_positions() -> None:
    text = torch.tensor([[1, 5, 6, 7, 5, 6, 7, 8, 9, 2]])  # 10 like the patches and their class
    call = {"input_ids": text, "pixel_values": torch.randn(1, 3, 12, 12)}
    profile = profile_model(clip(), **call)
    masses = {
        layer.name.split(".")[0]: torch.as_tensor(mass)
        for layer, mass in zip(profile.layers, profile["duplicate_token"], strict=True)
    }
    assert masses["vision_model"].isnan().all()
    assert (masses["text_model"] > 0).all()
    assert AttentionExtractor(clip()).get_attention(**call).tokens is None
    maps = AttentionExtractor(clip(), layers="text*").get_attention(**call)
    assert maps.tokens == (tuple(text[0].tolist()),)


def test_a_decoder_reads_what_its_model_shifts_to_the_right() -> None:
    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 50}
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = transformers.BartModel(transformers.BartConfig(**sizes, **layers, **heads)).eval()
    extractor = AttentionExtractor(model)
    maps = extractor.get_attention(input_ids=REPEATED)
    read = {layer.name.split(".")[0]: extractor.tokens_of(layer) for layer in maps.layers[:2]}
    assert read["encoder"] == (tuple(REPEATED[0].tolist()),)
    assert read["decoder"] == ((2, *REPEATED[0, :-1].tolist()),)


class Towers(torch.nn.Module):
    """Two towers of one's own, with names that say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 16)
        self.one, self.other = (
            torch.nn.TransformerEncoderLayer(16, 2, 16, batch_first=True) for _ in range(2)
        )

    def forward(self, ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        both: torch.Tensor = self.one(self.embed(ids)) + self.other(features)
        return both


def test_towers_of_ones_own_are_told_by_what_they_are_given() -> None:
    extractor = AttentionExtractor(Towers())
    maps = extractor.get_attention(REPEATED, torch.randn(1, 12, 16))
    assert extractor.tokens_of(maps.layers[0]) == (tuple(REPEATED[0].tolist()),)
    assert extractor.tokens_of(maps.layers[1]) is None
    assert extractor.tokens == (tuple(REPEATED[0].tolist()),)


def test_a_monitor_measures_each_tower_by_its_own_tokens() -> None:
    model = Towers().train()
    with HeadMonitor(model, every=1) as monitor:
        model(REPEATED, torch.randn(1, 12, 16)).sum().backward()
    (masses,) = monitor.history.values("duplicate_token")
    assert (masses[:2] > 0).all()
    assert not (masses[2:] > 0).any()


class Causal(torch.nn.Module):
    """Hides later tokens by hand, so that one token alone looks as if it saw everything."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[1]
        later = torch.ones(n, n, dtype=torch.bool).triu(1)
        weights: torch.Tensor = (x @ x.mT).masked_fill(later, float("-inf")).softmax(-1)
        return weights @ x


@pytest.mark.parametrize("lengths", [(6, 1), (1, 6), (1, 1, 6)])
def test_one_token_is_causal_where_more_are(lengths: tuple[int, ...]) -> None:
    batches = [torch.randn(2, n, 8) for n in lengths]
    profile = profile_dataset(Causal(), batches, progress=False)
    assert profile.layers[0].causal
    assert profile["future_mass"].max() == 0
    assert profile.layers[0].counts["entropy"][0] == 2 * sum(lengths)


class Reader(torch.nn.Module):
    """Cross-attention whose arguments say nothing."""

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (x @ other.mT).softmax(-1) @ other


def test_layers_may_be_named_cross_attention() -> None:
    batches = [(torch.randn(2, n, 8), torch.randn(2, k, 8)) for n, k in ((7, 7), (12, 5))]
    with pytest.raises(ValueError, match=r"kind of Reader is 'unknown'.*kinds=\{'name': 'cross'\}"):
        profile_dataset(Reader(), batches, progress=False)
    profile = profile_dataset(Reader(), batches, kinds={"Reader": "cross"}, progress=False)
    assert profile.layers[0].kind == "cross"
    assert profile.layers[0].counts["entropy"][0] == 38
    assert profile_model(Reader(), *batches[0], kinds={"Read*": "unknown"}).layers[0].kind == (
        "unknown"
    )


@pytest.mark.parametrize(
    ("kinds", "error", "says"),
    [
        ("cross", TypeError, "kinds: 'cross'; expected a mapping"),
        ({0: "cross"}, TypeError, "kinds: 0 is int; expected names of layers"),
        ({"Reader": "both"}, ValueError, "kinds: 'Reader' is 'both'; expected one of 'self'"),
        ({"decoder": "cross"}, ValueError, "kinds: no layer fits 'decoder'; there are Reader"),
    ],
)
def test_wrong_kinds_are_named(kinds: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        profile_model(Reader(), torch.randn(2, 7, 8), torch.randn(2, 7, 8), kinds=kinds)


def test_what_picks_out_of_a_batch_is_a_function() -> None:
    with pytest.raises(TypeError, match="inputs: 'x'; expected a function of a batch"):
        profile_dataset(Causal(), [torch.randn(1, 3, 8)], inputs="x")  # type: ignore[arg-type]


@pytest.mark.parametrize("argument", ["source", "src", "ctx", "memory"])
def test_another_sequence_is_known_by_its_name(argument: str) -> None:
    namespace: dict[str, Any] = {}
    exec(f"def forward(self, x, {argument}): return read(x, {argument})", {"read": read}, namespace)
    model = type("Named", (torch.nn.Module,), namespace)()
    maps = AttentionExtractor(model).get_attention(torch.randn(2, 7, 8), torch.randn(2, 7, 8))
    assert maps.layers[0].kind == "cross"


def read(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (x @ other.mT).softmax(-1) @ other
