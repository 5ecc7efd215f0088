"""Attention as TransformerLens, nnsight and BertViz hold it, in and out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from attncheck import AttentionMaps, LayerAttention, as_attention


def weights(seed: int, *shape: int) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(*(shape or (2, 3, 4, 4))).softmax(-1)


class Cache:
    """As TransformerLens has it: items and keys, but no `Mapping`."""

    def __init__(self, held: dict[str, Tensor]) -> None:
        self.cache_dict = held

    def __getitem__(self, key: str) -> Tensor:
        return self.cache_dict[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.cache_dict)

    def keys(self) -> Any:
        return self.cache_dict.keys()


@dataclass
class Saved:
    """As older versions of nnsight return what was saved."""

    value: Tensor


@pytest.mark.parametrize("kind", [dict, Cache])
def test_cache_of_transformer_lens(kind: type[Any]) -> None:
    held = {f"blocks.{i}.attn.hook_pattern": weights(i) for i in (10, 2, 0)}
    others = {"blocks.0.attn.hook_q": torch.zeros(1), "hook_embed": torch.zeros(1)}
    maps = as_attention(kind(held | others))
    assert maps.names == ("blocks.0.attn", "blocks.2.attn", "blocks.10.attn")
    assert [layer.index for layer in maps.layers] == [0, 1, 2]
    assert torch.equal(maps["blocks.10.attn"], held["blocks.10.attn.hook_pattern"])
    assert {layer.kind for layer in maps.layers} == {"self"}
    assert {layer.backend for layer in maps.layers} == {"TransformerLens"}


def test_cache_finds_causality() -> None:
    lower = weights(0, 2, 3, 4, 4).tril()
    lower = lower / lower.sum(-1, keepdim=True)
    held = {"blocks.0.attn.hook_pattern": lower, "blocks.1.attn.hook_pattern": weights(1)}
    assert [layer.causal for layer in as_attention(held).layers] == [True, False]


def test_cache_without_batch() -> None:
    maps = as_attention({"blocks.0.attn.hook_pattern": weights(0, 3, 4, 4)})
    assert maps[0].shape == (1, 3, 4, 4)


def test_cache_of_encoder_and_decoder() -> None:
    names = ["decoder.0.cross_attn", "decoder.0.attn", "encoder.1.attn", "encoder.0.attn"]
    held = {f"{name}.hook_pattern": weights(i) for i, name in enumerate(names)}
    held["decoder.0.cross_attn.hook_pattern"] = weights(0, 2, 3, 4, 7)
    maps = as_attention(held)
    assert maps.names == ("encoder.0.attn", "encoder.1.attn", *names[1::-1])
    assert [layer.kind for layer in maps.layers] == ["self", "self", "self", "cross"]


def test_cache_is_checked_like_anything_else() -> None:
    with pytest.raises(ValueError, match="rows do not sum to 1"):
        as_attention({"blocks.0.attn.hook_pattern": weights(0) * 2})


def test_mapping_without_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no attention weights"):
        as_attention({"blocks.0.attn.hook_q": weights(0)})


def test_saved_values_of_nnsight() -> None:
    held = [weights(0), weights(1)]
    maps = as_attention([Saved(tensor) for tensor in held])
    assert all(torch.equal(a, b) for a, b in zip(maps, held, strict=True))


def test_to_bertviz_and_back() -> None:
    maps = as_attention([weights(0), weights(1)])
    shown = maps.to_bertviz(element=1)
    assert isinstance(shown, tuple)
    assert [tuple(tensor.shape) for tensor in shown] == [(1, 3, 4, 4)] * 2
    assert torch.equal(shown[1][0], maps[1][1])
    again = as_attention(shown)
    assert all(torch.equal(a[1:], b) for a, b in zip(maps, again, strict=True))


def test_to_bertviz_is_float32_and_detached() -> None:
    half = weights(0).bfloat16().requires_grad_()
    (shown,) = AttentionMaps([LayerAttention(half)]).to_bertviz()
    assert shown.dtype == torch.float32
    assert not shown.requires_grad


def test_to_bertviz_chooses_a_kind() -> None:
    layers = [
        LayerAttention(weights(0), kind="self"),
        LayerAttention(weights(1, 2, 3, 4, 7), kind="cross"),
    ]
    maps = AttentionMaps(layers)
    assert maps.to_bertviz(kind="cross")[0].shape == (1, 3, 4, 7)
    with pytest.raises(ValueError, match=r"4 x 4, 4 x 7.*kind=\"self\""):
        maps.to_bertviz()
    with pytest.raises(ValueError, match="no layer is of kind 'causal'"):
        maps.to_bertviz(kind="causal")
    with pytest.raises(ValueError, match="no sequence 2 in a batch of 2"):
        maps.to_bertviz(kind="self", element=2)
    with pytest.raises(TypeError, match="element: 'x' is str; expected the number of a sequence"):
        maps.to_bertviz(kind="self", element="x")  # type: ignore[arg-type]


def test_arguments_of_bertviz() -> None:
    maps = as_attention(
        {
            "encoder_attention": (weights(0, 1, 2, 5, 5),),
            "decoder_attention": (weights(1, 1, 2, 4, 4),),
            "cross_attention": (weights(2, 1, 2, 4, 5),),
        }
    )
    assert maps.names == ("encoder layer 0", "decoder layer 0", "cross layer 0")
    assert [layer.kind for layer in maps.layers] == ["self", "self", "cross"]
