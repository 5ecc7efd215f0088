"""Modules that call `scaled_dot_product_attention` themselves, in every way it can be called."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as early_import

from attncheck import AttentionExtractor
from tests.capture.reference import Heads, close, reference_weights, stack

N = 6
X = torch.randn(2, N, 16, generator=torch.Generator().manual_seed(1))
PAD = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]).bool()
BIAS = torch.randn(4, N, N, generator=torch.Generator().manual_seed(2))
WINDOW = torch.ones(N, N).tril().triu(-2).bool()
HIDDEN = torch.zeros(N, N).masked_fill(~WINDOW, -torch.inf)

Attend = Callable[[Heads, Tensor, Tensor, Tensor], Tensor]
CALLS: dict[str, tuple[Attend, dict[str, object], dict[str, object]]] = {
    "plain": (
        lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v),
        {},
        {"causal": False, "mask": None},
    ),
    "keywords": (
        lambda m, q, k, v: F.scaled_dot_product_attention(query=q, key=k, value=v, is_causal=True),
        {"sees": lambda b, h, i, j: j <= i},
        {"causal": True, "mask": None},
    ),
    "early import": (
        lambda m, q, k, v: early_import(q, k, v, scale=0.3),
        {"scale": 0.3},
        {"causal": False, "mask": None},
    ),
    "builtin": (
        lambda m, q, k, v: torch._C._nn.scaled_dot_product_attention(q, k, v, None, 0.0, True),
        {"sees": lambda b, h, i, j: j <= i},
        {"causal": True, "mask": None},
    ),
    "padding": (
        lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, PAD[:, None, None]),
        {"sees": lambda b, h, i, j: bool(PAD[b, j])},
        {"causal": False, "mask": (2, 1, 1, N)},
    ),
    "bool window": (
        lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=WINDOW),
        {"sees": lambda b, h, i, j: i - 2 <= j <= i},
        {"causal": True, "mask": (1, 1, N, N)},
    ),
    "additive window": (
        lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=HIDDEN),
        {"sees": lambda b, h, i, j: i - 2 <= j <= i},
        {"causal": True, "mask": (1, 1, N, N)},
    ),
    "bias per head": (
        lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=BIAS),
        {"bias": lambda b, h, i, j: float(BIAS[h, i, j])},
        {"causal": False, "mask": None},
    ),
    "triangle as mask": (
        lambda m, q, k, v: F.scaled_dot_product_attention(
            q, k, v, attn_mask=torch.ones(N, N).tril().bool()
        ),
        {"sees": lambda b, h, i, j: j <= i},
        {"causal": True, "mask": None},
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_weights_equal_a_float64_loop(name: str) -> None:
    attend, expected, described = CALLS[name]
    model = stack(attend)
    before = model(X)
    with AttentionExtractor(model) as extractor:
        output = model(X)
    assert torch.equal(output, before)
    assert extractor.maps.names == ("0", "1")
    for layer, module in zip(extractor.maps.layers, model.children(), strict=True):
        assert isinstance(module, Heads)
        assert close(layer.weights, reference_weights(*module.last, **expected))  # type: ignore[arg-type]
        assert (layer.backend, layer.kind, layer.status) == ("sdpa", "self", "exact")
        assert layer.causal is described["causal"]
        assert (None if layer.mask is None else tuple(layer.mask.shape)) == described["mask"]
        assert layer.weights.dtype == torch.float32
        assert not layer.weights.requires_grad


def test_visible_keys_are_those_with_weight() -> None:
    for attend, _, _ in CALLS.values():
        layer = AttentionExtractor(stack(attend, 1)).get_attention(X).layers[0]
        assert torch.equal(layer.visible().expand_as(layer.weights), layer.weights > 0)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_queries_come_out_per_query_head(kv_heads: int) -> None:
    module = Heads(
        lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        num_key_value_heads=kv_heads,
    )
    layer = AttentionExtractor(module).get_attention(X).layers[0]
    assert layer.n_heads == 4
    assert layer.n_key_value_heads == kv_heads
    assert close(layer.weights, reference_weights(*module.last))


@pytest.mark.parametrize(("n_query", "n_key"), [(3, 6), (6, 3)])
def test_causal_alignment_is_the_kernels_top_left(n_query: int, n_key: int) -> None:
    module = Heads(lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    layer = AttentionExtractor(module).get_attention(X[:, :n_query], X[:, :n_key]).layers[0]
    expected = reference_weights(*module.last, sees=lambda b, h, i, j: j <= i)
    assert close(layer.weights, expected)
    assert torch.equal(layer.visible().expand_as(layer.weights), layer.weights > 0)
    assert not layer.positional


@pytest.mark.parametrize("lower_right", [False, True])
def test_causal_biases_of_torch(lower_right: bool) -> None:
    from torch.nn.attention.bias import causal_lower_right, causal_upper_left

    bias = (causal_lower_right if lower_right else causal_upper_left)(3, N)
    module = Heads(lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=bias))
    layer = AttentionExtractor(module).get_attention(X[:, :3], X).layers[0]
    shift = N - 3 if lower_right else 0
    expected = reference_weights(*module.last, sees=lambda b, h, i, j: j <= i + shift)
    assert close(layer.weights, expected)
    assert layer.causal is lower_right


def test_a_row_that_sees_nothing_is_zero_and_left_out() -> None:
    blind = torch.ones(N, N).bool()
    blind[2] = False
    module = Heads(lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, blind))
    layer = AttentionExtractor(module).get_attention(X).layers[0]
    assert (layer.weights[:, :, 2] == 0).all()
    assert layer.valid_rows()[0, 0].tolist() == [True, True, False, True, True, True]


def test_dropout_leaves_the_weights_that_it_drops_from() -> None:
    module = Heads(lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=0.5))
    with AttentionExtractor(module) as extractor:
        module(X)
    assert close(extractor.maps[0], reference_weights(*module.last))


@pytest.mark.parametrize("shape", [(N, 8), (3, N, 8), (2, 3, 5, N, 8)])
def test_any_rank_becomes_batch_head_query_key(shape: tuple[int, ...]) -> None:
    class Bare(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    q, k, v = torch.randn(3, *shape)
    weights = AttentionExtractor(Bare()).get_attention(q, k, v)[0]
    four = {2: (1, 1, N, 8), 3: (3, 1, N, 8), 5: (6, 5, N, 8)}[len(shape)]
    expected = reference_weights(q.reshape(four), k.reshape(four), sees=lambda b, h, i, j: j <= i)
    assert close(weights, expected)


def test_heads_folded_into_the_batch_are_unfolded() -> None:
    def attend(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        folded = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))
        return folded.unflatten(0, (2, 4))

    module = Heads(attend)
    weights = AttentionExtractor(module).get_attention(X)[0]
    assert close(weights, reference_weights(*module.last))


def test_another_source_of_keys_is_cross_attention() -> None:
    module = Heads(lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v))
    assert AttentionExtractor(module).get_attention(X, X[:, :4] * 2).layers[0].kind == "cross"
    assert AttentionExtractor(module).get_attention(X, context=X * 2).layers[0].kind == "cross"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_are_float32_at_least(dtype: torch.dtype) -> None:
    module = Heads(lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    layer = AttentionExtractor(module.to(dtype)).get_attention(X.to(dtype)).layers[0]
    assert layer.weights.dtype == torch.promote_types(dtype, torch.float32)
    assert layer.status == "exact"
    assert close(layer.weights, reference_weights(*module.last, sees=lambda b, h, i, j: j <= i))


def test_autocast_is_captured_and_left_on() -> None:
    module = Heads(lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v))
    with torch.autocast("cpu", dtype=torch.bfloat16), AttentionExtractor(module) as extractor:
        output = module(X)
        assert torch.is_autocast_enabled("cpu")
    assert output.dtype == torch.bfloat16
    assert extractor.maps[0].dtype == torch.float32


def test_inference_mode_gives_ordinary_tensors() -> None:
    module = Heads(lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v))
    with torch.inference_mode(), AttentionExtractor(module) as extractor:
        module(X)
    assert not extractor.maps[0].is_inference()
