from __future__ import annotations

import pytest
from hypothesis import given

from attncheck.strategies import attention_shapes
from tests.strategies.finding import smallest


@given(attention_shapes(max_length=5, max_batch=3, max_heads=4, min_length=2))
def test_square_shapes_stay_inside_their_limits(shape: tuple[int, int, int, int]) -> None:
    batch, heads, n_query, n_key = shape
    assert 1 <= batch <= 3
    assert 1 <= heads <= 4
    assert 2 <= n_query == n_key <= 5


@given(attention_shapes("cache"))
def test_cache_shapes_have_no_more_queries_than_keys(shape: tuple[int, int, int, int]) -> None:
    assert 1 <= shape[2] <= shape[3] <= 6


def test_any_shape_reaches_both_sides_and_every_limit() -> None:
    assert smallest(attention_shapes("any"), lambda s: s[2] < s[3]) == (1, 1, 1, 2)
    assert smallest(attention_shapes("any"), lambda s: s[2] > s[3]) == (1, 1, 2, 1)
    assert smallest(attention_shapes("any"), lambda s: s == (2, 3, 6, 6)) == (2, 3, 6, 6)
    assert smallest(attention_shapes()) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    "limits", [{"min_length": 0}, {"min_length": 7}, {"max_batch": 0}, {"max_heads": 0}]
)
def test_limits_that_leave_nothing_are_an_error(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"expected 1 <= min_length <= max_length"):
        attention_shapes(**limits)


def test_unknown_relation_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"relation: got 'round'; expected 'square', 'cache' or"):
        attention_shapes("round")  # type: ignore[arg-type]
