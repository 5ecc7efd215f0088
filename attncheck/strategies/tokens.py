"""Token sequences in which something repeats."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

__all__ = ["token_sequences"]


@st.composite
def _repeated_blocks(
    draw: DrawFn, lengths: tuple[int, int], n_tokens: int, start: int | None
) -> list[int]:
    shortest, longest = (limit - (start is not None) for limit in lengths)
    period = draw(st.integers(1, min(n_tokens, longest // 2)))
    fewest = max(2, -(-shortest // period))
    repeats = draw(st.integers(fewest, max(fewest, longest // period)))
    first = 0 if start is None else start + 1
    block = draw(
        st.lists(
            st.integers(first, first + n_tokens - 1), min_size=period, max_size=period, unique=True
        )
    )
    return ([] if start is None else [start]) + (block * repeats)[:longest]


def token_sequences(
    *,
    min_length: int = 1,
    max_length: int = 12,
    n_tokens: int = 4,
    start: int | None = None,
    repeated: bool = False,
) -> SearchStrategy[list[int]]:
    """Draw lists of token ids, short alphabets making repeats frequent.

    Args:
        min_length: Fewest tokens, start token included.
        max_length: Most tokens, start token included.
        n_tokens: Size of the alphabet, start token not included.
        start: Id of a start token that comes first and only there; the others then follow it.
        repeated: Draw one block of distinct tokens again and again, at least twice, so that every
            token of the second block has a duplicate and an induction target.

    Raises:
        ValueError: The limits leave nothing to draw.

    Example:
        >>> from hypothesis import find
        >>> find(token_sequences(start=0, repeated=True), lambda ids: len(set(ids)) > 3)
        [0, 1, 2, 3, 1, 2, 3]
    """
    least = 1 + (start is not None) + (1 if repeated else -1)
    if not max(0, least) <= max_length or not 0 <= min_length <= max_length or n_tokens < 1:
        raise ValueError(
            f"min_length, max_length, n_tokens: got {min_length}, {max_length}, {n_tokens}; "
            f"expected 0 <= min_length <= max_length, at least {max(least, 0)} tokens in all and "
            "an alphabet of 1 or more"
        )
    if repeated:
        return _repeated_blocks((min_length, max_length), n_tokens, start)
    first = 0 if start is None else start + 1
    behind = 0 if start is None else 1
    rest = st.lists(
        st.integers(first, first + n_tokens - 1),
        min_size=max(0, min_length - behind),
        max_size=max_length - behind,
    )
    return rest if start is None else rest.map(lambda ids: [start, *ids])
