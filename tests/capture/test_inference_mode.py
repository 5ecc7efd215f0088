"""Capture under `torch.inference_mode`, whose tensors count no versions."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from torch import Tensor, nn

from attncheck import AttentionExtractor, assert_causal


class Written(nn.Module):
    """Softmax by hand, with a mask that a second layer changes in place."""

    def __init__(self, *, widen: bool = False) -> None:
        super().__init__()
        self.project = nn.Linear(8, 24)
        self.widen = widen

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.widen:
            mask.zero_()
        query, key, value = self.project(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        weights = (query @ key.mT / 2 + mask).softmax(-1)
        return (weights @ value).transpose(1, 2).flatten(2)


class Model(nn.Module):
    def __init__(self, *, widen: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Written(), Written(widen=widen)])

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        mask = torch.full((1, 1, n, n), -math.inf).triu(1)
        for layer in self.layers:
            x = x + layer(x, mask)
        return x


@pytest.mark.parametrize("made_inside", [False, True], ids=["model", "inference model"])
def test_masked_softmax(made_inside: bool) -> None:
    model, x = Model().eval(), torch.randn(2, 5, 8)
    expected = AttentionExtractor(model).get_attention(x)
    with torch.inference_mode():
        if made_inside:
            state, model = model.state_dict(), Model().eval()
            model.load_state_dict(state)
        with AttentionExtractor(model) as extractor:
            model(x)
    assert_causal(extractor.maps)
    for ours, theirs, layer in zip(extractor.maps, expected, extractor.maps.layers, strict=True):
        assert torch.equal(ours, theirs)
        assert layer.causal
        assert not ours.is_inference()


def test_a_mask_changed_in_place_is_read_again() -> None:
    model, x = Model(widen=True).eval(), torch.randn(1, 5, 8)
    with torch.inference_mode(), AttentionExtractor(model) as extractor:
        model(x)
    assert [layer.causal for layer in extractor.maps.layers] == [True, False]


def test_eager_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=20,
        n_embd=8,
        n_layer=2,
        n_head=2,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="eager",
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.inference_mode(), AttentionExtractor(model) as extractor:
        outputs = model(torch.arange(6)[None], output_attentions=True)
    for ours, theirs in zip(extractor.maps, outputs.attentions, strict=True):
        assert torch.equal(ours, theirs)


def test_cleared_hooks_hold_no_weights() -> None:
    model = Model().eval()
    extractor = AttentionExtractor(model)
    extractor.register_hooks()
    model(torch.randn(1, 5, 8))
    weights = weakref.ref(extractor.maps[0])
    extractor.clear_hooks()
    gc.collect()
    assert weights() is None
