"""Every mask becomes bool, True = visible, and fits the weights or says why it does not."""

from __future__ import annotations

import pytest
import torch

from attncheck.attention import LayerAttention, as_attention, as_visible

SHAPE = (2, 3, 4, 5)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5,), (1, 1, 1, 5)),
        ((2, 5), (2, 1, 1, 5)),
        ((4, 5), (1, 1, 4, 5)),
        ((2, 4, 5), (2, 1, 4, 5)),
        ((1, 4, 5), (1, 1, 4, 5)),
        ((2, 1, 1, 5), (2, 1, 1, 5)),
        ((2, 3, 4, 5), (2, 3, 4, 5)),
        ((1, 3, 1, 5), (1, 3, 1, 5)),
    ],
)
def test_shapes(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    mask = torch.rand(shape) > 0.5
    visible = as_visible(mask, SHAPE)
    assert visible.shape == expected
    assert visible.dtype == torch.bool
    assert visible.sum() == mask.sum()


@pytest.mark.parametrize(
    "shape", [(4,), (3, 5), (2, 4), (3, 4, 5), (2, 2, 4, 5), (2, 3, 4, 1), (1, 2, 3, 4, 5), (5, 1)]
)
def test_misfits_name_both_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"fits no attention of shape .*\(2, 3, 4, 5\)") as caught:
        as_visible(torch.ones(shape, dtype=torch.bool), SHAPE)
    assert str(shape) in str(caught.value)


def test_a_square_mask_that_fits_twice_is_refused_unless_it_is_a_tokenizers() -> None:
    shape = (4, 1, 4, 4)
    with pytest.raises(ValueError, match=r"fits \(batch, key\) and \(query, key\)"):
        as_visible(torch.ones(4, 4, dtype=torch.bool), shape)
    assert as_visible(torch.ones(4, 4, dtype=torch.long), shape).shape == (4, 1, 1, 4)


@pytest.mark.parametrize(
    ("values", "visible"),
    [
        (torch.tensor([1, 0]), [True, False]),
        (torch.tensor([True, False]), [True, False]),
        (torch.tensor([0.0, -torch.inf]), [True, False]),
        (torch.tensor([0.0, torch.finfo(torch.float16).min]), [True, False]),
        (torch.tensor([0.0, -10000.0]), [True, False]),
        (torch.tensor([-3.5, -1.0]), [True, True]),
    ],
)
def test_values(values: torch.Tensor, visible: list[bool]) -> None:
    assert as_visible(values, (1, 1, 2, 2)).flatten().tolist() == visible


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (torch.tensor([101, 7]), "token ids"),
        (torch.tensor([1.0, 0.0]), r"mask.bool\(\)"),
        (torch.tensor([0.0, torch.nan]), "NaN"),
    ],
)
def test_values_of_no_known_form(values: torch.Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        as_visible(values, (1, 1, 2, 2))


@pytest.mark.parametrize("mask", ["x", object(), [[1, 0], [1]]])
def test_what_is_no_mask_is_named(mask: object) -> None:
    with pytest.raises(TypeError, match="mask: cannot read a mask from"):
        as_visible(mask, (1, 1, 2, 2))


def test_few_queries_over_padded_keys_are_no_padding() -> None:
    pooled, padded = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([1, 1, 0])
    layer = as_attention(pooled, mask=padded).layers[0]
    assert not layer.causal
    assert layer.valid_rows().all()
    assert as_attention(pooled, mask=torch.tensor([0, 1, 1])).layers[0].causal
    assert not as_attention(pooled, mask=padded, causal=True).layers[0].valid_rows().any()


def test_padding_drops_the_rows_of_padded_queries() -> None:
    layer = LayerAttention(
        torch.full((2, 1, 4, 4), 0.25),
        mask=as_visible(torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]]), (2, 1, 4, 4)),
    )
    assert layer.valid_rows()[:, 0].tolist() == [
        [True, True, True, False],
        [False, True, True, True],
    ]
    assert layer.visible().shape == (2, 1, 4, 4)


def test_cross_attention_has_no_padded_queries_to_drop() -> None:
    layer = LayerAttention(
        torch.full((1, 1, 4, 4), 0.25),
        kind="cross",
        mask=torch.tensor([1, 1, 0, 0]).bool().view(1, 1, 1, 4),
    )
    assert layer.valid_rows().all()
