"""Inputs as callers mean them: by place as the classic extractor took them, mappings by name."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attncheck import AttentionExtractor, profile_model


class Model(nn.Module):
    """A decoder that takes a cache in the second place, as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.seen: Tensor | None = None

    def forward(
        self,
        input_ids: Tensor,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        assert past_key_values is None or isinstance(past_key_values, list)
        self.seen = attention_mask
        x = self.embedding(input_ids)[:, None]
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None]
        return nn.functional.scaled_dot_product_attention(x, x, x, mask)


class MaskSecond(Model):
    def forward(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        return super().forward(input_ids, None, attention_mask)


class OneMapping(Model):
    """It takes what it needs out of one argument."""

    def forward(self, batch: Any) -> Tensor:  # type: ignore[override]
        return super().forward(batch["input_ids"])


IDS = torch.arange(6)[None]
MASK = torch.tensor([[1, 1, 1, 1, 0, 0]])


@pytest.mark.parametrize("model", [Model(), MaskSecond()], ids=["cache second", "mask second"])
def test_ids_and_mask_by_place(model: Model) -> None:
    maps = AttentionExtractor(model).get_attention(IDS, MASK)
    assert model.seen is MASK
    assert not maps[0][..., 4:].any()


def test_what_is_no_tensor_in_the_second_place_stays_there() -> None:
    model = Model()
    AttentionExtractor(model).get_attention(IDS, [])
    assert model.seen is None
    AttentionExtractor(model).get_attention(IDS, None, MASK)
    assert model.seen is MASK


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_a_mapping_by_place_is_refused_with_the_way_out(kind: Any) -> None:
    inputs = kind(input_ids=IDS, attention_mask=MASK)
    for call in (AttentionExtractor(Model()).get_attention, lambda x: profile_model(Model(), x)):
        with pytest.raises(
            TypeError,
            match=rf"inputs: got one {kind.__name__} of input_ids, attention_mask; .*\*\*inputs",
        ):
            call(inputs)


def test_text_is_refused_with_the_way_out() -> None:
    with pytest.raises(TypeError, match="inputs: got the text 'the cat'; tokenise it"):
        AttentionExtractor(Model()).get_attention("the cat")


def test_a_model_that_takes_a_mapping_gets_it() -> None:
    maps = AttentionExtractor(OneMapping()).get_attention({"input_ids": IDS})
    assert maps[0].shape == (1, 1, 6, 6)
