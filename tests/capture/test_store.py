"""What of a layer is kept: its weights, what they are made from, or its measures."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncheck import (
    AttentionExtractor,
    CaptureError,
    HeadProfile,
    assert_causal,
    profile_attention,
    profile_model,
)
from attncheck.attention import LayerAttention
from attncheck.attention.maps import Tokens
from attncheck.capture.transfer import Transfer
from attncheck.evaluate import profile_layer
from attncheck.profile import LayerProfile
from tests.capture.reference import Heads, reference_weights, stack

X = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(1))
LENGTH = X.shape[1]
ADDITIVE = torch.randn(2, 1, LENGTH, LENGTH, generator=torch.Generator().manual_seed(2)).triu(-9)


def causal(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape != k.shape)


def masked(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=ADDITIVE)


def own(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT / 2, dim=-1) @ v


def spoiling(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend, and then write over everything that went in."""
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    m.last = (q.clone(), k.clone())
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    for tensor in (q, k, v):
        tensor.detach().zero_()
    mask.fill_(True)
    return out


def every(model: nn.Module) -> list[np.ndarray]:
    """Causal maps of the last call, by float64 loops."""
    heads = [module for module in model.modules() if isinstance(module, Heads)]
    return [reference_weights(*m.last, sees=lambda b, h, i, j: j <= i) for m in heads]


def test_weights_are_made_when_they_are_read_and_are_the_models() -> None:
    model = stack(causal)
    maps = AttentionExtractor(model).get_attention(X)
    assert all(layer.query_key is not None for layer in maps.layers), "none made so far"
    for weights, expected in zip(maps, every(model), strict=True):
        np.testing.assert_allclose(weights.double(), expected, atol=1e-6)
    assert all(layer.query_key is None for layer in maps.layers), "query and key are let go"


def test_short_sequences_hold_weights_which_are_smaller() -> None:
    layer = AttentionExtractor(stack(causal)).get_attention(X[:, :6]).layers[0]
    assert layer.query_key is None
    assert layer.weights.nbytes < 2 * 2 * 6 * 16 * 4


@pytest.mark.parametrize("store", ["weights", "qk"])
def test_what_the_model_writes_over_later_was_copied(store: str) -> None:
    model = stack(spoiling)
    maps = AttentionExtractor(model, store=store).get_attention(X)
    assert maps.layers[0].query_key is not None
    for layer, expected in zip(maps.layers, every(model), strict=True):
        np.testing.assert_allclose(layer.weights.double(), expected, atol=1e-6)
        assert layer.causal
        assert_causal(layer)


@pytest.mark.parametrize("attend", [causal, masked], ids=["causal", "mask"])
def test_query_and_key_make_the_same_weights_and_hold_none(attend: Callable[..., Tensor]) -> None:
    model = stack(attend)
    expected = list(AttentionExtractor(model).get_attention(X))
    maps = AttentionExtractor(model, store="qk").get_attention(X)
    for layer, weights in zip(maps.layers, expected, strict=True):
        record = layer.query_key
        assert record is not None
        made = layer.weights
        torch.testing.assert_close(made, weights, atol=1e-6, rtol=0)
        alive = weakref.ref(made)
        del made
        gc.collect()
        assert alive() is None
        assert layer.query_key is record


def test_key_value_heads_are_held_once() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.attn = Heads(causal, num_key_value_heads=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.attn(x)  # type: ignore[no-any-return]

    model = Grouped()
    layer = AttentionExtractor(model, store="qk", heads=[3, 0]).get_attention(X).layers[0]
    record = layer.query_key
    assert record is not None
    assert (record.query.shape[1], record.key.shape[1], record.key_heads) == (2, 2, (1, 0))
    np.testing.assert_allclose(layer.weights.double(), every(model)[0][:, [3, 0]], atol=1e-6)
    only = AttentionExtractor(model, store="qk", heads=3).get_attention(X).layers[0].query_key
    assert only is not None
    assert (only.key.shape[1], only.key_heads) == (1, (0,))


def test_weights_that_the_model_makes_itself_are_held_and_say_so() -> None:
    model = stack(own)
    layer = AttentionExtractor(model, store="qk").get_attention(X).layers[0]
    assert layer.query_key is None
    assert layer.note == "weights held: the model makes them itself and shows no query and key"
    assert AttentionExtractor(model).get_attention(X).layers[0].note == ""


def test_dtype_is_that_of_weights_made_later() -> None:
    for store in ("weights", "qk"):
        maps = AttentionExtractor(stack(causal), store=store, dtype=torch.float16).get_attention(X)
        assert maps.layers[0].query_key is not None
        assert maps[0].dtype == maps.layers[0].dtype == torch.float16


def test_profile_is_that_of_the_maps() -> None:
    model = stack(causal)
    extractor = AttentionExtractor(model, store="profile")
    extractor.watch(X)
    expected = profile_attention(AttentionExtractor(model).get_attention(X))
    assert isinstance(extractor.profile, HeadProfile)
    assert {"entropy", "previous_token"} <= set(extractor.profile.measures)
    for measure in set(extractor.profile.measures) - {"block"}:  # searched for, not read off
        np.testing.assert_allclose(extractor.profile[measure], expected[measure], atol=1e-5)
    with pytest.raises(CaptureError, match=r"maps: store='profile' keeps none"):
        extractor.maps  # noqa: B018
    plain = AttentionExtractor(model)
    plain.watch(X)
    with pytest.raises(CaptureError, match=r"profile: store='weights' measures nothing"):
        plain.profile  # noqa: B018


def test_an_evaluator_that_reads_query_and_key_makes_no_weights() -> None:
    model = stack(causal)
    expected = profile_model(model, X)
    made: list[object] = []
    rows = LENGTH // 2

    def in_halves(layer: LayerAttention, tokens: Tokens | None) -> LayerProfile:
        record = layer.query_key
        assert record is not None
        halves = [record.weights(slice(0, rows))[0], record.weights(slice(rows, None))[0]]
        made.append(layer.query_key)
        assert layer.query_key is record, "still no weights"
        return profile_layer(layer.changed(weights=torch.cat(halves, dim=2)), tokens)

    found = profile_model(model, X, evaluator=in_halves)
    assert len(made) == 2
    for measure in set(expected.measures) - {"block"}:
        np.testing.assert_allclose(found[measure], expected[measure], atol=1e-5)


def test_on_layer_may_keep_a_layer_for_later() -> None:
    model = stack(spoiling)
    layers: list[LayerAttention] = []
    AttentionExtractor(model, on_layer=layers.append).watch(X)
    for layer, expected in zip(layers, every(model), strict=True):
        np.testing.assert_allclose(layer.weights.double(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.int64}, "dtype: torch.int64 cannot hold attention weights; expected"),
        ({"dtype": "float32"}, "dtype: 'float32' cannot hold"),
        ({"device": "nowhere"}, "device: 'nowhere' cannot keep weights"),
        ({"store": "maps"}, "store: got 'maps'; expected 'weights', 'qk' or 'profile'"),
        ({"memory_limit": 1.5}, "memory_limit: got 1.5; expected a share"),
        ({"memory_limit": 0}, "memory_limit: got 0; expected"),
    ],
    ids=str,
)
def test_bad_options_are_refused_before_the_model_runs(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionExtractor(stack(causal), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="device: 'cuda' cannot keep weights"):
        AttentionExtractor(stack(causal), device="cuda")


def test_tensors_that_are_where_they_are_kept_do_not_move() -> None:
    tensor = torch.randn(3)
    for device in (None, torch.device("cpu")):
        transfer = Transfer(device)
        assert transfer.of(tensor) is tensor
        transfer.finish()
    assert Transfer(torch.device("meta")).of(tensor).is_meta


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_copies_in_the_background_are_whole_when_handed_over() -> None:
    tensor = torch.randn(1 << 24, device="cuda")
    expected = tensor.cpu()
    transfer = Transfer(torch.device("cpu"))
    copies = [transfer.of(tensor) for _ in range(8)]
    transfer.finish()
    assert all(copy.is_pinned() and copy.equal(expected) for copy in copies)


def test_a_compiled_model_says_that_it_ran_eagerly() -> None:
    model = stack(causal)
    note = "compiled by torch.compile, ran eagerly while it was captured"
    maps = AttentionExtractor(torch.compile(model)).get_attention(X)  # type: ignore[arg-type]
    assert [layer.note for layer in maps.layers] == [note, note]
    assert [layer.note for layer in AttentionExtractor(model).get_attention(X).layers] == ["", ""]
    first = next(module for module in model.modules() if isinstance(module, Heads))
    first.compile()
    notes = [layer.note for layer in AttentionExtractor(model).get_attention(X).layers]
    assert notes == [note, ""]
