from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attncheck.strategies import QueryKeyValue, attention_shapes, qkv
from tests.strategies.finding import smallest


@given(qkv())
def test_inputs_are_what_scaled_dot_product_attention_takes(inputs: QueryKeyValue) -> None:
    query, key, value = inputs
    assert query.shape[1] % key.shape[1] == 0
    assert key.shape[:3] == value.shape[:3]
    output = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    assert output.shape == (*query.shape[:3], value.shape[-1])
    assert torch.isfinite(output).all()


@given(qkv(dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float64])))
def test_numbers_are_the_same_in_every_dtype(inputs: QueryKeyValue) -> None:
    for part in inputs:
        assert part.dtype != torch.float32
        assert torch.equal((part.double() * 4).round() / 4, part.double())
        assert part.abs().max() <= 3


@given(qkv(shape=(2, 3, 4, 5), width=6, value_width=2, grouped=False, scale=100.0))
def test_given_sizes_are_kept(inputs: QueryKeyValue) -> None:
    assert inputs.query.shape == (2, 3, 4, 6)
    assert inputs.key.shape == (2, 3, 5, 6)
    assert inputs.value.shape == (2, 3, 5, 2)
    assert torch.equal((inputs.query / 25).round() * 25, inputs.query)


def test_every_kind_of_call_is_reached() -> None:
    smallest(qkv(), lambda x: x.key.shape[1] == 1 < x.query.shape[1])
    smallest(qkv(), lambda x: x.query.shape[-1] != x.value.shape[-1])
    smallest(qkv(), lambda x: x.query.shape[2] > x.key.shape[2])
    smallest(qkv(relation="square"), lambda x: x.query.shape[2] == x.key.shape[2] == 6)


def test_a_missing_scale_shrinks_to_one_query_and_two_keys_of_simple_numbers() -> None:
    def unscaled(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.softmax(query @ key.mT, -1) @ value

    def wrong(inputs: QueryKeyValue) -> bool:
        right = F.scaled_dot_product_attention(*inputs)
        return not torch.allclose(unscaled(*inputs), right, atol=1e-5)

    query, key, value = smallest(qkv(shape=attention_shapes("any", max_length=3)), wrong)
    assert query.tolist() == [[[[0.25, 0.25]]]]
    assert key.tolist() == [[[[0, 0], [0.25, 0.25]]]]
    assert value.tolist() == [[[[0], [0.25]]]]


@pytest.mark.parametrize("grouped", [True, False])
def test_the_minimal_example_is_a_single_zero(grouped: bool) -> None:
    for part in smallest(qkv(grouped=grouped)):
        assert part.tolist() == [[[[0.0]]]]


def test_widths_of_nothing_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"width, value_width: got 0, 2; expected 1 or more"):
        smallest(qkv(width=0, value_width=2))
