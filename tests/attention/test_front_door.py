"""The front door takes what people have, and says clearly what it does not take."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attncheck.attention import AttentionMaps, LayerAttention, as_attention


def uniform(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Weights that give every key the same share."""
    return torch.full(shape, 1 / shape[-1], dtype=dtype)


@dataclass
class Output:
    """Looks like a Hugging Face output."""

    attentions: Any = None
    cross_attentions: Any = None


@pytest.mark.parametrize(
    ("given_", "shapes"),
    [
        (uniform(3, 4), [(1, 1, 3, 4)]),
        (uniform(2, 3, 4), [(1, 2, 3, 4)]),
        (uniform(5, 2, 3, 4), [(5, 2, 3, 4)]),
        (uniform(6, 5, 2, 3, 4), [(5, 2, 3, 4)] * 6),
        (uniform(3, 4).numpy(), [(1, 1, 3, 4)]),
        (uniform(3, 4).tolist(), [(1, 1, 3, 4)]),
        ([uniform(2, 3, 4), uniform(2, 3, 4)], [(1, 2, 3, 4)] * 2),
        ((uniform(1, 2, 3, 4), uniform(1, 6, 3, 4).numpy()), [(1, 2, 3, 4), (1, 6, 3, 4)]),
        (Output(attentions=(uniform(1, 2, 3, 3),) * 2), [(1, 2, 3, 3)] * 2),
        ({"attentions": (uniform(1, 2, 3, 3),)}, [(1, 2, 3, 3)]),
        (LayerAttention(uniform(1, 2, 3, 3)), [(1, 2, 3, 3)]),
        (AttentionMaps([LayerAttention(uniform(1, 2, 3, 3))]), [(1, 2, 3, 3)]),
        (np.ones((3, 3, 1), dtype=np.float64), [(1, 3, 3, 1)]),
        (torch.eye(3, dtype=torch.long), [(1, 1, 3, 3)]),
    ],
)
def test_takes_every_usual_form(given_: Any, shapes: list[tuple[int, ...]]) -> None:
    maps = as_attention(given_)
    assert [tuple(weights.shape) for weights in maps] == shapes
    assert all(not weights.requires_grad for weights in maps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_keeps_dtype_and_values(dtype: torch.dtype) -> None:
    weights = torch.rand(2, 7, 7).softmax(-1).to(dtype).requires_grad_()
    maps = as_attention(weights)
    assert maps[0].dtype == dtype
    assert torch.equal(maps[0][0], weights)
    assert not maps[0].requires_grad


def test_does_not_copy_and_takes_any_layout() -> None:
    weights = torch.rand(8, 8).softmax(-1)
    assert as_attention(weights)[0].data_ptr() == weights.data_ptr()
    transposed = torch.rand(4, 6, 2).softmax(1).permute(2, 0, 1)
    assert torch.equal(as_attention(transposed)[0][0], transposed)
    assert as_attention(uniform(1, 4).expand(4, 4))[0].shape == (1, 1, 4, 4)


def test_kinds_and_names_of_encoder_decoder_outputs() -> None:
    output = Output(attentions=(uniform(1, 2, 3, 3),), cross_attentions=(uniform(1, 2, 3, 5),))
    maps = as_attention(output)
    assert [layer.kind for layer in maps.layers] == ["self", "cross"]
    assert maps.names == ("layer 0", "cross layer 0")
    assert [layer.index for layer in maps.layers] == [0, 1]
    assert not maps.layers[1].positional


@pytest.mark.parametrize(
    ("given_", "error", "words"),
    [
        (None, TypeError, ["attention: is None", "AttentionExtractor"]),
        ("text", TypeError, ["attention", "str", "expected a tensor"]),
        (3.0, ValueError, ["0 dimensions", "(query, key)"]),
        (torch.ones(4), ValueError, ["has 1 dimension, shape (4,)"]),
        (torch.ones(1, 1, 1, 1, 1, 1), ValueError, ["6 dimensions"]),
        ([], ValueError, ["empty", "holds no layer"]),
        (torch.ones(0, 4), ValueError, ["empty", "(0, 4)"]),
        (Output(attentions=()), ValueError, ["Output holds no attention", "AttentionExtractor"]),
        (Output(attentions=(None, None)), ValueError, ["attentions[0] is None", "backend"]),
        ([uniform(3, 3), uniform(4, 4)], ValueError, ["ragged", "(1, 1, 4, 4)"]),
        (torch.randn(5, 5) - 9, ValueError, ["negative", "softmax(dim=-1)"]),
        (torch.randn(5, 5).abs() * 9, ValueError, ["do not sum to 1", "softmax(dim=-1)"]),
        (torch.full((3, 3), torch.nan), ValueError, ["NaN", "row (0, 0, 0)", "mask="]),
        (torch.rand(5, 5).softmax(0), ValueError, ["columns do sum to 1", "keys"]),
        (uniform(5, 5) * 0.9, ValueError, ["fall short", "sink"]),
        (torch.arange(9).view(3, 3), TypeError, ["int64", "token ids"]),
        (torch.eye(3, dtype=torch.complex64), TypeError, ["real"]),
        (torch.eye(3).to(torch.float8_e4m3fn), TypeError, ["float8", "float32"]),
        ([uniform(3, 3), None], TypeError, ["attention[1]: is None"]),
    ],
)
def test_says_what_is_wrong(given_: Any, error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as caught:
        as_attention(given_)
    for word in words:
        assert word in str(caught.value)


def test_dropout_is_diagnosed() -> None:
    torch.manual_seed(0)
    dropped = torch.nn.functional.dropout(torch.rand(64, 64).softmax(-1), 0.2)
    with pytest.raises(ValueError, match=r"looks? like dropout: call model.eval\(\)"):
        as_attention(dropped)


def test_the_error_names_the_layer_and_the_argument() -> None:
    bad = LayerAttention(uniform(1, 1, 3, 3) * 2, name="decoder.2.attn")
    good = LayerAttention(uniform(1, 1, 3, 3), name="decoder.1.attn")
    with pytest.raises(ValueError, match=r"^weights\[decoder.2.attn\]: rows do not sum"):
        as_attention(AttentionMaps([good, bad]), name="weights")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((0, 2, 3, 3), "has no sequences: (batch, head, query, key) = (0, 2, 3, 3)"),
        ((1, 0, 3, 3), "has no heads: "),
        ((1, 2, 0, 3), "has no queries: "),
        ((1, 2, 3, 0), "has no keys: "),
        ((1, 2, 0, 0), "has no queries, no keys: (batch, head, query, key) = (1, 2, 0, 0)"),
    ],
)
@pytest.mark.parametrize("require", ["weights", "shape"])
def test_an_axis_without_entries_is_named(shape: tuple[int, ...], words: str, require: Any) -> None:
    weights = torch.zeros(shape)
    layer = LayerAttention(weights, name="attn")
    for held in (weights, layer, AttentionMaps([layer]), {"attentions": (weights,)}):
        with pytest.raises(ValueError, match=re.escape(words)) as caught:
            as_attention(held, require=require)
        assert str(caught.value).startswith("attention")


def test_an_empty_layer_among_others_is_named() -> None:
    layers = [LayerAttention(uniform(1, 2, 3, n), name=f"memory.{n}") for n in (3, 2)]
    layers.append(LayerAttention(torch.zeros(1, 2, 3, 0), name="memory.0"))
    with pytest.raises(ValueError, match=r"^attention\[memory\.0\]: empty, has no keys"):
        as_attention(AttentionMaps(layers))


def test_shape_only_leaves_values_to_the_caller() -> None:
    assert as_attention(torch.randn(4, 4), require="shape")[0].shape == (1, 1, 4, 4)


def test_masked_rows_may_hold_anything() -> None:
    weights = uniform(2, 4, 4).clone()
    weights[:, 0] = torch.nan
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[0] = False
    maps = as_attention(weights, mask=mask)
    assert maps.layers[0].valid_rows()[0, :, :].tolist() == [[False, True, True, True]] * 2
    zeros = uniform(4, 4).clone()
    zeros[2] = 0
    assert as_attention(zeros).layers[0].valid_rows()[0, 0].tolist() == [True, True, False, True]


def test_sink_mass_completes_the_row() -> None:
    layer = LayerAttention(uniform(1, 2, 3, 3) * 0.75, sink_mass=torch.full((1, 2, 3), 0.25))
    assert as_attention(layer).layers[0].sink_mass is not None


class TestCausality:
    def test_is_found_in_bare_tensors(self) -> None:
        causal = torch.rand(2, 5, 5).tril().clamp(min=0.01).tril()
        causal = causal / causal.sum(-1, keepdim=True)
        assert as_attention(causal).layers[0].causal
        assert not as_attention(uniform(5, 5)).layers[0].causal

    def test_what_the_caller_says_wins(self) -> None:
        assert not as_attention(torch.eye(5), causal=False).layers[0].causal
        assert as_attention(uniform(5, 5), causal=True, require="shape").layers[0].causal

    def test_what_maps_carry_is_kept(self) -> None:
        layer = LayerAttention(torch.eye(5)[None, None], causal=False)
        assert not as_attention(layer).layers[0].causal

    def test_a_cache_step_is_aligned_at_the_end(self) -> None:
        whole = torch.rand(6, 6).softmax(-1).tril()
        whole = whole / whole.sum(-1, keepdim=True)
        step = as_attention(whole[-2:]).layers[0]
        assert step.causal
        assert step.query_positions().tolist() == [4, 5]
        assert step.visible()[0, 0].tolist() == [[True] * 5 + [False], [True] * 6]
        assert step.positional

    def test_more_queries_than_keys_is_not_causal(self) -> None:
        layer = as_attention(uniform(6, 4)).layers[0]
        assert not layer.causal
        assert not layer.positional


class TestTokens:
    def test_strings_ids_and_batches(self) -> None:
        assert as_attention(uniform(2, 2), tokens=["a", "b"]).tokens == (("a", "b"),)
        assert as_attention(uniform(2, 2), tokens=torch.tensor([5, 6])).tokens == ((5, 6),)
        batch = as_attention(uniform(2, 1, 2, 2), tokens=[["a", "b"], ["c", "d"]])
        assert batch.tokens == (("a", "b"), ("c", "d"))
        assert as_attention(uniform(2, 1, 2, 2), tokens=["a", "b"]).tokens == (("a", "b"),) * 2

    @pytest.mark.parametrize(
        ("tokens", "words"),
        [
            (["a"], "1 tokens for 2 keys"),
            ([["a", "b"]] * 3, "3 sequences for a batch of 1"),
            ("ab", "one string"),
        ],
    )
    def test_wrong_numbers_are_named(self, tokens: Any, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            as_attention(uniform(2, 2), tokens=tokens)

    def test_what_is_no_list_is_named(self) -> None:
        with pytest.raises(TypeError, match="tokens: got int; expected a list of tokens"):
            as_attention(uniform(2, 2), tokens=3)

    def test_maps_keep_theirs(self) -> None:
        maps = as_attention(uniform(2, 2), tokens=["a", "b"])
        assert as_attention(maps).tokens == (("a", "b"),)
        assert as_attention(maps, tokens=["c", "d"]).tokens == (("c", "d"),)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.eye(3).to_sparse(), r"attention: is a sparse_coo tensor; .*to_dense"),
        (torch.eye(3, device="meta"), "attention: is on the meta device"),
        (
            torch.nested.nested_tensor([torch.eye(3), torch.eye(2, 3)], layout=torch.jagged),
            "is a nested tensor",
        ),
    ],
    ids=["sparse", "meta", "nested"],
)
def test_tensors_that_cannot_be_read_are_named(tensor: torch.Tensor, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        as_attention(tensor)


def test_a_model_is_not_its_attention() -> None:
    with pytest.raises(TypeError, match=r"^attention: is a model, Linear; .*AttentionExtractor"):
        as_attention(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("causal", ["no", 1, torch.tensor(True)])
def test_causal_is_true_false_or_none(causal: Any) -> None:
    with pytest.raises(TypeError, match=r"causal: got .*; expected True, False or None"):
        as_attention(uniform(2, 2), causal=causal)


@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    n_query=st.integers(1, 5),
    n_key=st.integers(1, 5),
    rank=st.integers(2, 4),
)
def test_going_in_twice_changes_nothing(
    batch: int, heads: int, n_query: int, n_key: int, rank: int
) -> None:
    weights = uniform(*(batch, heads, n_query, n_key)[4 - rank :])
    once = as_attention(weights)
    again = as_attention(once)
    assert torch.equal(again[0], once[0])
    assert again.layers[0].causal == once.layers[0].causal
    assert once[0].shape == (1, 1, 1, 1, *weights.shape)[-4:]
