"""Which layers and heads are kept, and what names nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncheck import AttentionExtractor, CaptureError, LayerAttention
from attncheck.capture.select import LayerSelection
from tests.capture.reference import Heads, stack

X = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(1))


def attend(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return nn.ModuleDict({"low": stack(attend, 3), "high": stack(attend, 2)}).eval()


class Run(nn.Module):
    """Runs the parts of a `ModuleDict` in turn."""

    def __init__(self, parts: Any) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts.values():
            x = part(x)
        return x


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, [0, 1, 2, 3, 4]),
        (1, [1]),
        (-1, [4]),
        ([-1, -3], [2, 4]),
        ([0, -1], [0, 4]),
        (range(1, 3), [1, 2]),
        (slice(1, 4), [1, 2, 3]),
        (slice(-2, None), [3, 4]),
        (slice(None, -2), [0, 1, 2]),
        (slice(None, None, 2), [0, 2, 4]),
        ("parts.high", [3, 4]),
        ("parts.*.1", [1, 4]),
        (["parts.low.0", -1], [0, 4]),
        ([torch.tensor(2).item()], [2]),
    ],
    ids=str,
)
def test_layers(model: Any, layers: Any, expected: list[int]) -> None:
    run = Run(model)
    whole = AttentionExtractor(run).get_attention(X)
    chosen = AttentionExtractor(run, layers).get_attention(X)
    assert [layer.index for layer in chosen.layers] == expected
    for layer in chosen.layers:
        assert torch.equal(layer.weights, whole[layer.index])


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (7, "no layer 7; the model ran 5, 0 to 4"),
        (-6, "no layer -6"),
        ("encoder.*", "no module fits 'encoder"),
        ("parts.low.0.query", "no attention ran in 'parts.low.0.query'; it ran in parts.low.0"),
        ([], "is empty"),
        (slice(9, 12), "selects none of the 5"),
    ],
    ids=str,
)
def test_layers_that_do_not_exist(model: Any, layers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionExtractor(Run(model), layers).get_attention(X)


def test_layers_of_another_type(model: Any) -> None:
    with pytest.raises(TypeError, match=r"layers: 1\.5 is float"):
        AttentionExtractor(Run(model), [1.5])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        AttentionExtractor("gpt2")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("heads", "expected"),
    [(0, [0]), ([2, 0], [2, 0]), (-1, [3]), (slice(2), [0, 1]), (range(4), [0, 1, 2, 3])],
)
def test_heads(model: Any, heads: Any, expected: list[int]) -> None:
    run = Run(model)
    whole = AttentionExtractor(run).get_attention(X)
    layer = AttentionExtractor(run, heads=heads).get_attention(X).layers[0]
    assert list(layer.heads) == expected
    assert torch.equal(layer.weights, whole[0][:, expected])
    assert layer.n_key_value_heads == 4


@pytest.mark.parametrize("heads", [4, [-5], [], slice(9, 12)])
def test_heads_that_do_not_exist(model: Any, heads: Any) -> None:
    with pytest.raises(ValueError, match="heads: "):
        AttentionExtractor(Run(model), heads=heads).get_attention(X)


def test_grouped_heads_select_their_keys() -> None:
    module = Heads(
        lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        num_key_value_heads=2,
    )
    whole = AttentionExtractor(module).get_attention(X)[0]
    chosen = AttentionExtractor(module, heads=[3, 1]).get_attention(X).layers[0]
    assert torch.equal(chosen.weights, whole[:, [3, 1]])
    assert chosen.n_key_value_heads == 2


def test_dtype_and_device() -> None:
    layer = (
        AttentionExtractor(stack(attend), dtype=torch.float64, device="meta")
        .get_attention(X)
        .layers[0]
    )
    assert (layer.weights.dtype, layer.weights.device.type) == (torch.float64, "meta")


def test_a_consumer_takes_layers_as_they_come() -> None:
    taken: list[LayerAttention] = []
    model = stack(attend, 3)
    seen: list[int] = []
    model[2].register_forward_pre_hook(lambda *_: seen.append(len(taken)))  # type: ignore[operator]
    with AttentionExtractor(model, on_layer=taken.append) as extractor:
        model(X)
    assert seen == [2]
    assert [layer.index for layer in taken] == [0, 1, 2]
    with pytest.raises(CaptureError, match="went to on_layer"):
        extractor.maps  # noqa: B018


def test_maps_inside_the_block_and_a_second_use() -> None:
    model = stack(attend)
    extractor = AttentionExtractor(model, layers=-1)
    with extractor:
        model(X)
        assert len(extractor.maps) == 1
        model(X)
        with pytest.raises(RuntimeError, match="already capturing"):
            extractor.__enter__()
    assert len(extractor.maps) == 2
    assert len(extractor.get_attention(X)) == 1


@pytest.mark.parametrize(
    "chosen",
    [np.int64(1), np.array(1), np.array([1]), [np.int32(1)], torch.tensor([1]), (1,), {1}],
    ids=repr,
)
def test_integers_of_any_kind(model: Any, chosen: Any) -> None:
    layers = AttentionExtractor(Run(model), chosen).get_attention(X).layers
    assert [layer.index for layer in layers] == [1]
    assert all(type(index) is int for index in LayerSelection(chosen, [])._indices)
    heads = AttentionExtractor(Run(model), 0, heads=chosen).get_attention(X).layers[0].heads
    assert heads == (1,)


@pytest.mark.parametrize(
    "chosen",
    [1.0, 1.5, True, np.True_, [True], [1.0], [0, None], np.array([1.0]), torch.tensor([True])],
    ids=repr,
)
@pytest.mark.parametrize("argument", ["layers", "heads"])
def test_what_is_no_integer_is_named_at_once(argument: str, chosen: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{argument}: .* is \w+; expected"):
        AttentionExtractor(stack(attend), **{argument: chosen})


@pytest.mark.parametrize("argument", ["layers", "heads"])
def test_bounds_of_a_slice_are_integers(argument: str) -> None:
    with pytest.raises(TypeError, match=rf"^{argument}: 0.5 is float; expected whole bounds"):
        AttentionExtractor(stack(attend), **{argument: slice(0.5, 2)})
    span = slice(np.int64(1), None)
    assert len(AttentionExtractor(stack(attend), **{argument: span}).get_attention(X)) > 0


def test_what_hooks_are_registered_for() -> None:
    model = stack(attend, 2)
    extractor = AttentionExtractor(model)
    extractor.register_hooks("1")
    model(X)
    assert extractor.maps.names == ("1",)
    extractor.clear_hooks()
    with pytest.raises(TypeError, match=r"^layer_names: 3; expected module paths"):
        extractor.register_hooks(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^on_layer: 'print'; expected a function of a layer"):
        AttentionExtractor(model, on_layer="print")  # type: ignore[arg-type]
