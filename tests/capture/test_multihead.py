"""`nn.MultiheadAttention` and the transformer layers on top of it, fused inference included."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attncheck import AttentionExtractor

N, S = 5, 7
GENERATOR = torch.Generator().manual_seed(1)
X = torch.randn(2, N, 16, generator=GENERATOR)
MEMORY = torch.randn(2, S, 16, generator=GENERATOR)
PAD = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1]]).bool()
FUTURE = torch.ones(N, N).triu(1).bool()


def expected(attention: nn.MultiheadAttention, query: Tensor, key: Tensor, hidden: Any) -> Any:
    """Per-head weights from the projection matrices, float64, a row at a time."""
    weight = attention.in_proj_weight.detach().double().numpy()
    bias = attention.in_proj_bias.detach().double().numpy()
    heads, size = attention.num_heads, attention.head_dim
    q = query.double().numpy() @ weight[:16].T + bias[:16]
    k = key.double().numpy() @ weight[16:32].T + bias[16:32]
    weights = np.zeros((len(q), heads, q.shape[1], k.shape[1]))
    for b, h, i in np.ndindex(*weights.shape[:3]):
        part = slice(h * size, (h + 1) * size)
        seen = [j for j in range(k.shape[1]) if not hidden(b, i, j)]
        scores = np.array([q[b, i, part] @ k[b, j, part] / math.sqrt(size) for j in seen])
        powers = np.exp(scores - scores.max())
        weights[b, h, i, seen] = powers / powers.sum()
    return weights


def made(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    return nn.MultiheadAttention(16, 4, batch_first=True, **options).eval()


CALLS: dict[str, tuple[dict[str, Any], Any]] = {
    "plain": ({}, lambda b, i, j: False),
    "averaged weights": ({"need_weights": True}, lambda b, i, j: False),
    "weights per head": (
        {"need_weights": True, "average_attn_weights": False},
        lambda b, i, j: False,
    ),
    "padding": ({"key_padding_mask": PAD}, lambda b, i, j: bool(PAD[b, j])),
    "mask": ({"attn_mask": FUTURE}, lambda b, i, j: j > i),
    "additive mask": (
        {"attn_mask": torch.zeros(N, N).masked_fill(FUTURE, -math.inf)},
        lambda b, i, j: j > i,
    ),
    "causal hint": ({"attn_mask": FUTURE, "is_causal": True}, lambda b, i, j: j > i),
    "mask per head": ({"attn_mask": FUTURE.expand(8, N, N)}, lambda b, i, j: j > i),
    "mask and padding": (
        {"attn_mask": FUTURE, "key_padding_mask": PAD},
        lambda b, i, j: j > i or bool(PAD[b, j]),
    ),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_self_attention_per_head(name: str, training: bool) -> None:
    options, hidden = CALLS[name]
    options = {"need_weights": False, **options}
    attention = made(dropout=0.3).train(training)
    with AttentionExtractor(attention) as extractor:
        attention(X, X, X, **options)
    layer = extractor.maps.layers[0]
    assert np.abs(layer.weights.numpy() - expected(attention, X, X, hidden)).max() < 1e-6
    assert torch.equal(layer.visible().expand_as(layer.weights), layer.weights > 0)
    assert (layer.kind, layer.name) == ("self", "MultiheadAttention")
    assert layer.causal is ("mask" in name or "causal" in name)


def test_cross_attention() -> None:
    attention = made()
    layer = AttentionExtractor(attention).get_attention(X, MEMORY, MEMORY).layers[0]
    reference = expected(attention, X, MEMORY, lambda b, i, j: False)
    assert np.abs(layer.weights.numpy() - reference).max() < 1e-6
    assert layer.kind == "cross"


def test_other_layouts() -> None:
    attention = made()
    reference = AttentionExtractor(attention).get_attention(X, X, X)[0]
    unbatched = AttentionExtractor(attention).get_attention(X[0], X[0], X[0])[0]
    torch.testing.assert_close(unbatched, reference[:1])
    attention.batch_first = False
    length_first = X.transpose(0, 1)
    turned = AttentionExtractor(attention).get_attention(length_first, length_first, length_first)
    torch.testing.assert_close(turned[0], reference)
    assert turned.layers[0].kind == "self"


def test_keys_that_the_module_adds_itself_are_kept() -> None:
    attention = made(add_bias_kv=True, add_zero_attn=True)
    layer = AttentionExtractor(attention).get_attention(X, X, X, key_padding_mask=PAD).layers[0]
    assert layer.weights.shape == (2, 4, N, N + 2)
    torch.testing.assert_close(layer.weights.sum(-1), torch.ones(2, 4, N))


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_a_blind_row_is_what_the_model_used(need_weights: bool, batched: bool) -> None:
    """The path that returns weights has NaN there, that of `scaled_dot_product_attention` zeros."""
    blind = FUTURE.clone()
    blind[3] = True
    attention, x = made(), X if batched else X[0]
    with AttentionExtractor(attention) as extractor:
        output, returned = attention(
            x, x, x, attn_mask=blind, need_weights=need_weights, average_attn_weights=False
        )
    (layer,) = extractor.maps.layers
    assert bool(output[..., 3, :].isnan().all()) is need_weights
    row = layer.weights[:, :, 3]
    assert bool(row.isnan().all() if need_weights else (row == 0).all())
    if need_weights:
        torch.testing.assert_close(layer.weights, returned.view_as(layer.weights), equal_nan=True)
    assert not layer.weights[:, :, [0, 1, 2, 4]].isnan().any()
    assert not layer.valid_rows()[:, :, 3].any()


@pytest.mark.parametrize("padding", [None, PAD])
def test_encoder_in_fused_inference(padding: Tensor | None) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    with torch.no_grad():
        fused = encoder(X, src_key_padding_mask=padding)
        with AttentionExtractor(encoder) as extractor:
            output = encoder(X, src_key_padding_mask=padding)
        after = encoder(X, src_key_padding_mask=padding)
    maps = extractor.maps
    assert maps.names == ("layers.0.self_attn", "layers.1.self_attn")
    first = encoder.layers[0]
    assert isinstance(first, nn.TransformerEncoderLayer)
    reference = expected(
        first.self_attn, X, X, lambda b, i, j: padding is not None and bool(padding[b, j])
    )
    assert np.abs(maps[0].numpy() - reference).max() < 1e-6
    kept = torch.ones(2, N).bool() if padding is None else ~padding
    torch.testing.assert_close(output[kept], fused[kept], atol=1e-6, rtol=1e-5)
    assert torch.equal(after, fused)


def test_decoder_has_self_and_cross_attention() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(16, 4, 32, batch_first=True)
    decoder = nn.TransformerDecoder(layer, 2)
    maps = AttentionExtractor(decoder).get_attention(X, MEMORY, tgt_mask=FUTURE, tgt_is_causal=True)
    assert [(held.kind, held.causal) for held in maps.layers] == [
        ("self", True),
        ("cross", False),
    ] * 2
    assert maps[1].shape == (2, 4, N, S)


def test_whole_transformer() -> None:
    torch.manual_seed(0)
    model = nn.Transformer(16, 4, 2, 2, 32, batch_first=True)
    maps = AttentionExtractor(model).get_attention(MEMORY, X)
    assert [held.kind for held in maps.layers] == ["self"] * 2 + ["self", "cross"] * 2
    for weights in maps:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))
