from __future__ import annotations

import pytest
from hypothesis import given

from attncheck.strategies import token_sequences
from tests.strategies.finding import smallest


@given(token_sequences(min_length=3, max_length=7, n_tokens=5))
def test_tokens_stay_inside_their_limits(ids: list[int]) -> None:
    assert 3 <= len(ids) <= 7
    assert set(ids) <= set(range(5))


@given(token_sequences(min_length=1, max_length=5, n_tokens=2, start=9))
def test_start_token_comes_first_and_only_there(ids: list[int]) -> None:
    assert ids[0] == 9
    assert set(ids[1:]) <= {10, 11}
    assert 1 <= len(ids) <= 5


@given(token_sequences(min_length=4, max_length=11, n_tokens=4, repeated=True))
def test_repeated_sequences_are_one_block_of_distinct_tokens_again(ids: list[int]) -> None:
    assert 4 <= len(ids) <= 11
    period = ids[1:].index(ids[0]) + 1 if ids[0] in ids[1:] else len(ids)
    assert len(ids) >= 2 * period
    assert len(set(ids[:period])) == period
    assert all(ids[i] == ids[i - period] for i in range(period, len(ids)))


@given(token_sequences(max_length=9, start=0, repeated=True))
def test_repeated_sequences_with_a_start_token(ids: list[int]) -> None:
    assert ids[0] == 0
    assert 0 not in ids[1:]
    assert 3 <= len(ids) <= 9


def test_minimal_examples_are_readable() -> None:
    assert smallest(token_sequences(), lambda ids: len(set(ids)) < len(ids)) == [0, 0]
    assert smallest(token_sequences(start=0), lambda ids: 3 in ids) == [0, 3]
    assert smallest(token_sequences(repeated=True)) == [0, 0]
    longest = smallest(token_sequences(repeated=True, max_length=8), lambda ids: len(set(ids)) == 4)
    assert sorted(longest[:4]) == [0, 1, 2, 3]
    assert longest == longest[:4] * 2


@pytest.mark.parametrize(
    "limits",
    [
        {"min_length": 5, "max_length": 4},
        {"min_length": -1},
        {"n_tokens": 0},
        {"max_length": 0, "min_length": 0, "start": 1},
        {"max_length": 2, "start": 1, "repeated": True},
        {"max_length": 1, "repeated": True},
    ],
)
def test_limits_that_leave_nothing_are_an_error(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"expected 0 <= min_length <= max_length"):
        token_sequences(**limits)  # type: ignore[arg-type]
