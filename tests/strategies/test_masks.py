from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attncheck.attention import as_visible
from attncheck.strategies import attention_masks, attention_shapes
from attncheck.strategies.masks import MASK_KINDS
from tests.strategies.finding import smallest

SHAPES = attention_shapes("any")
Shape = tuple[int, int, int, int]


@given(st.data(), SHAPES, st.sampled_from(sorted(MASK_KINDS)))
def test_every_query_sees_a_key_and_the_mask_broadcasts(
    data: st.DataObject, shape: Shape, kind: str
) -> None:
    mask = data.draw(attention_masks(shape, kinds=[kind]))
    assert mask.dtype == torch.bool
    visible = mask.expand(shape)
    assert visible.any(-1).all()
    assert torch.equal(as_visible(mask, shape).expand(shape), visible)


@given(st.data(), SHAPES)
def test_floating_masks_hide_by_minus_infinity(data: st.DataObject, shape: Shape) -> None:
    mask = data.draw(attention_masks(shape, form="float"))
    assert ((mask == 0) | (mask == -torch.inf)).all()
    assert as_visible(mask, shape).expand(shape).any(-1).all()


def hides_future(mask: Tensor) -> bool:
    n_query, n_key = mask.shape[-2:]
    return not mask[..., torch.ones(n_query, n_key).triu(1 + n_key - n_query).bool()].any()


@given(attention_masks(attention_shapes("cache"), kinds=["causal"]))
def test_causal_masks_align_the_last_query_with_the_last_key(mask: Tensor) -> None:
    assert hides_future(mask)
    assert mask[..., -1, :].all()
    assert int(mask.sum()) == sum(range(mask.shape[-1] - mask.shape[-2] + 1, mask.shape[-1] + 1))


@given(attention_masks((3, 1, 4, 4), kinds=["padding"]))
def test_padding_hides_a_run_at_either_end(mask: Tensor) -> None:
    assert mask.shape == (3, 1, 1, 4)
    for row in mask[:, 0, 0].int().tolist():
        assert "".join(map(str, row)).strip("0") == "1" * sum(row)


@given(attention_masks((1, 1, 5, 5), kinds=["segments"]))
def test_segments_are_blocks_on_the_diagonal(mask: Tensor) -> None:
    blocks = mask[0, 0]
    assert blocks.diagonal().all()
    assert torch.equal(blocks, blocks.mT)
    assert torch.equal(blocks.int() @ blocks.int() > 0, blocks)


@given(attention_masks((1, 1, 5, 5), kinds=["window"]))
def test_windows_are_bands(mask: Tensor) -> None:
    band = mask[0, 0]
    for offset in range(-4, 5):
        diagonal = band.diagonal(offset)
        assert diagonal.all() or not diagonal.any()
    assert band.diagonal().all()


def test_every_kind_reaches_what_makes_it_different() -> None:
    shape = (2, 2, 4, 4)

    def reached(kind: str, wanted: str) -> None:
        conditions = {
            "left padding": lambda m: not m[..., 0].any() and bool(m.any()),
            "ragged": lambda m: bool((m[0].sum() != m[1].sum()).any()),
            "two-sided": lambda m: bool(m[..., 0, 1].all()) and not bool(m.all()),
            "one-sided": lambda m: hides_future(m) and not bool(m[..., 3, 0].any()),
            "blocks": lambda m: not bool(m[..., 3, 0].any() or m[..., 0, 3].any()),
            "per head": lambda m: not torch.equal(m[:, 0], m[:, 1]),
        }
        smallest(attention_masks(shape, kinds=[kind]), conditions[wanted])

    reached("padding", "left padding")
    reached("padding", "ragged")
    reached("window", "two-sided")
    reached("window", "one-sided")
    reached("segments", "blocks")
    reached("arbitrary", "per head")


def test_empty_rows_come_only_when_asked_for() -> None:
    shape = (1, 1, 3, 3)
    mask = smallest(attention_masks(shape, empty_rows=True), lambda m: not m.any(-1).all())
    assert mask.int().tolist() == [[[[0, 0, 0], [1, 1, 1], [1, 1, 1]]]]


def test_minimal_mask_hides_nothing_and_the_next_is_causal() -> None:
    assert smallest(attention_masks((1, 1, 2, 2))).tolist() == [[[[True] * 2] * 2]]
    hiding = smallest(attention_masks((1, 1, 2, 2)), lambda m: not m.all())
    assert hiding.tolist() == [[[[True, False], [True, True]]]]


@pytest.mark.parametrize("kinds", [[], ["banded"], ["causal", "sparse"], "causal"])
def test_unknown_kinds_are_an_error(kinds: list[str] | str) -> None:
    with pytest.raises(ValueError, match=r"kinds: got .*; expected a list of some of full, causal"):
        attention_masks((1, 1, 2, 2), kinds=kinds)


def test_an_unknown_form_is_an_error() -> None:
    strategy = attention_masks((1, 1, 2, 2), form="int")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="form: got 'int'; expected 'bool' or 'float'"):
        smallest(strategy)
