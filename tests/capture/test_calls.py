"""Who is called how often: shared layers, repeats, checkpointing, generation, compilation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attncheck import AttentionExtractor
from tests.capture.reference import Heads, stack

X = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(1))


def attend(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def written_out(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).softmax(-1) @ v


class Shared(nn.Module):
    """One layer, applied three times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Heads(attend)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.layer(x)
        return x


def keys(extractor: AttentionExtractor) -> list[tuple[str, int, int]]:
    return [(layer.name, layer.index, layer.call) for layer in extractor.maps.layers]


def test_a_shared_layer_is_keyed_by_call() -> None:
    with AttentionExtractor(Shared()) as extractor:
        extractor.model(X)
    assert keys(extractor) == [("layer", 0, 0), ("layer", 1, 1), ("layer", 2, 2)]


def test_a_second_call_of_the_model_numbers_from_zero_again() -> None:
    model = stack(attend)
    with AttentionExtractor(model) as extractor:
        model(X)
        model(X[:, :4])
    assert keys(extractor) == [("0", 0, 0), ("1", 1, 0), ("0", 0, 1), ("1", 1, 1)]
    assert [weights.shape[-1] for weights in extractor.maps] == [6, 6, 4, 4]


class Checkpointed(nn.Module):
    """Runs its layers again in the backward pass."""

    def __init__(self, *, reentrant: bool, how: object = attend) -> None:
        super().__init__()
        self.layers = stack(how)  # type: ignore[arg-type]
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.children():
            x = checkpoint(layer, x, use_reentrant=self.reentrant)  # type: ignore[assignment]
        return x


@pytest.mark.parametrize("how", [attend, written_out])
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_is_not_captured_twice(reentrant: bool, how: object) -> None:
    model = Checkpointed(reentrant=reentrant, how=how)
    model.eval()
    with AttentionExtractor(model) as extractor:
        model(X.clone().requires_grad_()).sum().backward()
    assert keys(extractor) == [("layers.0", 0, 0), ("layers.1", 1, 0)]


def test_a_compiled_model_runs_eagerly_while_watched() -> None:
    model = stack(attend)
    compiled = torch.compile(model, backend="eager")
    before = compiled(X)
    with AttentionExtractor(compiled) as extractor:  # type: ignore[arg-type]
        during = compiled(X)
    assert extractor.maps.names == ("0", "1")
    torch.testing.assert_close(during, before)
    assert torch.equal(compiled(X), before)
    assert torch.equal(extractor.maps[0], AttentionExtractor(model).get_attention(X)[0])


def test_albert_shares_one_layer() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AlbertConfig(
        hidden_size=32,
        embedding_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=32,
        vocab_size=60,
    )
    model = transformers.AlbertModel(config)
    maps = AttentionExtractor(model).get_attention(torch.arange(9)[None])
    assert len(set(maps.names)) == 1
    assert [(layer.index, layer.call) for layer in maps.layers] == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_gives_one_entry_per_layer_and_step(backend: str, cache: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_head=4, n_embd=32, vocab_size=60)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.set_attn_implementation(backend)
    ids = torch.randint(3, 50, (1, 7))
    with AttentionExtractor(model) as extractor:
        out = model.generate(
            ids,
            max_new_tokens=3,
            do_sample=False,
            cache_implementation=cache,
            eos_token_id=None,
            pad_token_id=0,
        )
    layers = extractor.maps.layers
    assert [(layer.index, layer.call) for layer in layers] == [
        (i, c) for c in range(3) for i in (0, 1)
    ]
    assert [layer.n_query for layer in layers] == [7, 7, 1, 1, 1, 1]
    # Every step's row is the row of one forward over the whole sequence.
    whole = AttentionExtractor(model).get_attention(out[:, :-1])
    for step, layer in enumerate(layers[2::2]):
        row = layer.weights[0, :, 0, : 8 + step]
        torch.testing.assert_close(row, whole[0][0, :, 7 + step, : 8 + step], atol=1e-5, rtol=0)
        assert not layer.weights[0, :, 0, 8 + step :].any()
    if cache == "dynamic":
        assert all(layer.causal and layer.kind == "self" for layer in layers)


def test_gradient_checkpointing_of_transformers_is_not_captured_twice() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=2, n_head=4, n_embd=32, vocab_size=60, attn_pdrop=0.0, use_cache=False
    )
    model = transformers.GPT2Model(config).train()
    model.gradient_checkpointing_enable()
    with AttentionExtractor(model) as extractor:
        model(torch.arange(7)[None])[0].sum().backward()
    assert keys(extractor) == [("h.0.attn", 0, 0), ("h.1.attn", 1, 0)]
