"""Hugging Face models, tiny and random, in the backend they are set to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attncheck import AttentionExtractor, AttentionMaps

transformers = pytest.importorskip("transformers")

TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60}
IDS = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(1))
PAD = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
LEFT_PAD = PAD.flip(1)
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
GQA = {**TEXT, "num_key_value_heads": 2, "intermediate_size": 32, "head_dim": 8}
PLAIN = {"input_ids": IDS}

MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gpt2": ("GPT2", {"n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 60}, PLAIN),
    "gpt2 left padding": (
        "GPT2",
        {"n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 60},
        {**PLAIN, "attention_mask": LEFT_PAD},
    ),
    "llama grouped": ("Llama", GQA, PLAIN),
    "llama padding": ("Llama", GQA, {**PLAIN, "attention_mask": PAD}),
    "mistral window": ("Mistral", {**GQA, "sliding_window": 3}, PLAIN),
    "gemma2 softcap": (
        "Gemma2",
        {**GQA, "sliding_window": 4, "attn_logit_softcapping": 2.0},
        PLAIN,
    ),
    "gpt_oss sinks": (
        "GptOss",
        {**GQA, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 4},
        PLAIN,
    ),
    "gpt_neox": ("GPTNeoX", {**TEXT, "intermediate_size": 32}, PLAIN),
    "bloom": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 60}, PLAIN),
    "gptj": (
        "GPTJ",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 60, "rotary_dim": 4},
        PLAIN,
    ),
    "falcon": ("Falcon", TEXT, PLAIN),
    "bert": ("Bert", {**TEXT, "intermediate_size": 32}, PLAIN),
    "bert padding": ("Bert", {**TEXT, "intermediate_size": 32}, {**PLAIN, "attention_mask": PAD}),
    "deberta": (
        "DebertaV2",
        {**TEXT, "intermediate_size": 32, "relative_attention": True, "pos_att_type": ["c2p"]},
        {**PLAIN, "attention_mask": PAD},
    ),
    "t5": (
        "T5",
        {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 60},
        {**PLAIN, "attention_mask": PAD, "decoder_input_ids": IDS[:, :5]},
    ),
    "bart": (
        "Bart",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "vocab_size": 60,
        },
        {**PLAIN, "decoder_input_ids": IDS[:, :5]},
    ),
    "vit": (
        "ViT",
        {**TEXT, "intermediate_size": 32, "image_size": 16, "patch_size": 8},
        {"pixel_values": PIXELS},
    ),
}
MASKED = ["gpt2 left padding", "llama padding", "mistral window", "bert padding"]


def build(name: str, backend: str) -> nn.Module:
    family, options, _ = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**options)
    model: Any = getattr(transformers, f"{family}Model")(config).eval()
    try:
        model.set_attn_implementation(backend)
    except ValueError:
        pytest.skip(f"{family} refuses {backend}")
    if model.config._attn_implementation != backend:
        pytest.skip(f"{family} has no {backend}")
    return model  # type: ignore[no-any-return]


def returned(model: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
    with torch.no_grad():
        output = model(**inputs, output_attentions=True)
    fields = ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions")
    return [weights for field in fields for weights in output.get(field) or ()]


def in_their_order(maps: AttentionMaps) -> list[Tensor]:
    """Encoder, decoder, cross: the order in which outputs list them."""
    layers = maps.layers
    cross = [layer for layer in layers if layer.kind == "cross"]
    decoder = [layer for layer in layers if layer.name.startswith("decoder") and layer not in cross]
    rest = [layer for layer in layers if layer not in cross and layer not in decoder]
    return [layer.weights for layer in (*rest, *decoder, *cross)]


@pytest.mark.parametrize("name", MODELS)
def test_eager_weights_are_the_models_own(name: str) -> None:
    model, inputs = build(name, "eager"), MODELS[name][2]
    maps = AttentionExtractor(model).get_attention(**inputs)
    theirs = returned(model, inputs)
    assert len(maps) == len(theirs)
    for ours, their in zip(in_their_order(maps), theirs, strict=True):
        torch.testing.assert_close(ours, their, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_sdpa_stays_sdpa_and_gives_eagers_weights(name: str) -> None:
    model, inputs = build(name, "sdpa"), MODELS[name][2]
    with torch.no_grad():
        before = model(**inputs)[0]
        with AttentionExtractor(model) as extractor:
            during = model(**inputs)[0]
    assert torch.equal(during, before)
    maps = extractor.maps
    assert model.config._attn_implementation == "sdpa"  # type: ignore[union-attr]
    eager = AttentionExtractor(build(name, "eager")).get_attention(**inputs)
    assert maps.names == eager.names
    for ours, theirs in zip(maps.layers, eager.layers, strict=True):
        # Rows that see no key are no attention; eager spreads them, sdpa may not.
        rows = theirs.valid_rows()
        torch.testing.assert_close(ours.weights[rows], theirs.weights[rows], atol=1e-5, rtol=0)
        assert torch.equal(ours.valid_rows(), rows)
        assert (ours.kind, ours.causal) == (theirs.kind, theirs.causal)
        assert ours.backend == "sdpa"


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_visible_is_what_the_weights_show(name: str, backend: str) -> None:
    maps = AttentionExtractor(build(name, backend)).get_attention(**MODELS[name][2])
    for layer in maps.layers:
        rows = layer.valid_rows()
        seen = layer.visible().expand_as(layer.weights)
        assert torch.equal(seen[rows], layer.weights[rows] > 0)
        assert layer.causal is ("bert" not in name)


def test_grouped_heads_are_told() -> None:
    layer = AttentionExtractor(build("llama grouped", "sdpa")).get_attention(**PLAIN).layers[0]
    assert (layer.n_heads, layer.n_key_value_heads) == (4, 2)


def test_weights_that_a_model_returns_without_its_sink() -> None:
    config_class = getattr(transformers, "GraniteSWAConfig", None)
    if config_class is None:
        pytest.skip("no GraniteSWA in this transformers")
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(
        config_class(**{**GQA, "pad_token_id": 0}), attn_implementation="eager"
    ).eval()
    layer = AttentionExtractor(model).get_attention(**PLAIN).layers[0]
    returned = model(**PLAIN, output_attentions=True).attentions[0]
    assert layer.sink_mass is not None
    assert "before its sink" in layer.note
    torch.testing.assert_close(layer.weights.sum(-1) + layer.sink_mass, torch.ones(2, 4, 9))
    torch.testing.assert_close(layer.weights / (1 - layer.sink_mass[..., None]), returned)


def test_sink_mass_completes_the_rows() -> None:
    layer = AttentionExtractor(build("gpt_oss sinks", "eager")).get_attention(**PLAIN).layers[0]
    assert layer.sink_mass is not None
    assert layer.sink_mass.min() > 0
    assert not layer.note
    torch.testing.assert_close(layer.weights.sum(-1) + layer.sink_mass, torch.ones(2, 4, 9))


class OwnEager(nn.Module):
    """Asks transformers for its attention, which is a function of its own, and passes a sink."""

    def __init__(self) -> None:
        super().__init__()
        self.sink = nn.Linear(32, 4)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, dropout: float, sinks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Let every query have a sink, as Inkling does."""
        scores = query @ key.mT / query.shape[-1] ** 0.5
        weights = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
        weights = nn.functional.dropout(weights, dropout)
        return (weights @ value).transpose(1, 2), weights

    @staticmethod
    def eager(
        module: OwnEager,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        dropout: float = 0.0,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        return module.attend(query, key, value, dropout, **options)

    def options(self, x: Tensor) -> dict[str, Tensor]:
        return {"sinks": self.sink(x).transpose(1, 2).unsqueeze(-1)}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        registry = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS
        function = registry.get_interface("eager", self.eager)
        heads = x.view(*x.shape[:2], 4, 8).transpose(1, 2)
        dropout = 0.5 if self.training else 0.0
        output: tuple[Tensor, Tensor] = function(
            self, heads, heads, heads, None, dropout=dropout, **self.options(x)
        )
        return output


class OwnBias(OwnEager):
    """Adds to its scores what nobody passes."""

    def attend(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, dropout: float
    ) -> tuple[Tensor, Tensor]:
        scores = query @ key.mT - torch.arange(9).sub(torch.arange(9)[:, None]).abs()
        weights = nn.functional.dropout(scores.softmax(-1), dropout)
        return (weights @ value).transpose(1, 2), weights

    def options(self, x: Tensor) -> dict[str, Tensor]:
        return {}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", [OwnEager, OwnBias])
def test_an_eager_function_of_its_own(kind: type[OwnEager], training: bool) -> None:
    model = kind().eval()
    x = torch.randn(2, 9, 32)
    weights = model(x)[1]
    model.train(training)
    torch.manual_seed(1)
    output = model(x)[0]
    torch.manual_seed(1)
    with AttentionExtractor(model) as extractor:
        assert torch.equal(model(x)[0], output)
    layer = extractor.maps.layers[0]
    torch.testing.assert_close(layer.weights, weights)
    rest = 0 if layer.sink_mass is None else layer.sink_mass
    torch.testing.assert_close(layer.weights.sum(-1) + rest, torch.ones(2, 4, 9))
    assert (layer.sink_mass is not None) == (kind is OwnEager)


class Drawing(OwnEager):
    """Draws a random number also without dropout, and returns its weights or keeps them."""

    def __init__(self, returns: bool) -> None:
        super().__init__()
        self.returns = returns

    def attend(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, dropout: float
    ) -> tuple[Tensor, Tensor | None]:
        torch.rand(())
        weights = nn.functional.dropout((query @ key.mT / 8**0.5).softmax(-1), dropout)
        return (weights @ value).transpose(1, 2), weights if self.returns else None

    def options(self, x: Tensor) -> dict[str, Tensor]:
        return {}


@pytest.mark.parametrize("returns", [False, True])
def test_what_it_draws_when_asked_again_is_put_back_once(
    returns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork, forks, deepest = torch.random.fork_rng, 0, 0

    @contextmanager
    def counted(*args: Any, **options: Any) -> Iterator[None]:
        nonlocal forks, deepest
        forks += 1
        deepest = max(deepest, forks)
        with fork(*args, **options):
            yield
        forks -= 1

    monkeypatch.setattr(torch.random, "fork_rng", counted)
    model, x = Drawing(returns).train(), torch.randn(2, 9, 32)
    torch.manual_seed(1)
    model(x)
    drawn = torch.rand(())
    torch.manual_seed(1)
    with AttentionExtractor(model) as extractor:
        model(x)
    assert torch.equal(torch.rand(()), drawn)
    assert extractor.maps.layers[0].status == "exact"
    assert deepest == 1


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_training_gives_the_weights_before_dropout(backend: str) -> None:
    model = build("gpt2", backend)
    calm = AttentionExtractor(model).get_attention(**PLAIN)
    model.train()
    model.config.embd_pdrop = 0.0  # type: ignore[union-attr]
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attn_dropout"):
            module.attn_dropout.p = 0.5  # type: ignore[union-attr]
    with AttentionExtractor(model, layers=[0]) as extractor:
        model(**PLAIN)
    torch.testing.assert_close(extractor.maps[0], calm[0], atol=1e-6, rtol=0)


def test_tokens_are_the_ids_of_the_call() -> None:
    model = build("gpt2", "sdpa")
    assert AttentionExtractor(model).get_attention(IDS).tokens == tuple(map(tuple, IDS.tolist()))
    assert AttentionExtractor(model).get_attention(input_ids=IDS).tokens is not None
    assert AttentionExtractor(build("t5", "sdpa")).get_attention(**MODELS["t5"][2]).tokens is None


def test_half_precision() -> None:
    model = build("llama grouped", "sdpa").to(torch.bfloat16)
    maps = AttentionExtractor(model).get_attention(**PLAIN)
    assert {weights.dtype for weights in maps} == {torch.float32}
    model.set_attn_implementation("eager")  # type: ignore[operator]
    theirs = returned(model, PLAIN)
    ours = AttentionExtractor(model).get_attention(**PLAIN)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("name", ["llama grouped", *MASKED[1:]])
def test_flex_attention_gives_eagers_weights(name: str) -> None:
    inputs = MODELS[name][2]
    flex = AttentionExtractor(build(name, "flex_attention")).get_attention(**inputs)
    eager = AttentionExtractor(build(name, "eager")).get_attention(**inputs)
    for ours, theirs in zip(flex.layers, eager.layers, strict=True):
        rows = theirs.valid_rows()
        torch.testing.assert_close(ours.weights[rows], theirs.weights[rows], atol=1e-5, rtol=0)
        assert (ours.backend, ours.causal) == ("flex_attention", theirs.causal)


class Indexing(nn.Module):
    """Takes its attention function out of the registry by key, as some vision models do."""

    def forward(self, query: Tensor) -> Tensor:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
        output: Tensor = attend(self, query, query, query, attention_mask=None, is_causal=False)[0]
        return output


def test_a_registry_indexed_directly() -> None:
    query = torch.randn(2, 4, 5, 8)
    layer = AttentionExtractor(Indexing()).get_attention(query).layers[0]
    expected = (query @ query.mT / 8**0.5).softmax(-1)
    torch.testing.assert_close(layer.weights, expected)
    assert (layer.name, layer.backend, layer.causal) == ("Indexing", "sdpa", False)
