"""`Grid`: everything a pattern's relation between queries and keys may look at."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from attncheck.attention import LayerAttention

__all__ = [
    "DELIMITERS",
    "Grid",
    "Marks",
    "encode_tokens",
    "is_delimiter",
    "make_grid",
    "read_marks",
    "tokens_with_repeats",
]

DELIMITERS: Final = frozenset(
    [".", ",", ";", ":", "!", "?", "\n", "[SEP]", "</s>", "<|endoftext|>", "<eos>"]
)
"""Tokens that end something, where the caller names no others (for tokens that are strings)."""

WORD_STARTS: Final = "\u0120\u2581 "
"""Marks that tokenizers put before a word; left out when a token is compared to a delimiter."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Queries, keys and what is known of them.

    Attributes:
        visible: Which keys each query may see: bool ``(batch or 1, head or 1, query, key)``.
        positions: Key position of each query, ``(query,)``.
        positional: Whether query and key positions count the same tokens.
        causal: Whether queries see no later key.
        tokens: A number per distinct token, ``(batch or 1, key)``; None if not known.
        segments: Number of each key's segment, ``(batch or 1, key)``; None if not known.
        delimiters: Which keys are delimiters, bool ``(batch or 1, key)``; None if not known.
    """

    visible: Tensor
    positions: Tensor
    positional: bool = True
    causal: bool = False
    tokens: Tensor | None = None
    segments: Tensor | None = None
    delimiters: Tensor | None = None

    @property
    def n_key(self) -> int:
        """Number of keys."""
        return self.visible.shape[-1]

    @property
    def keys(self) -> Tensor:
        """Positions of the keys, ``(key,)``."""
        return torch.arange(self.n_key, device=self.visible.device)

    @property
    def offsets(self) -> Tensor:
        """How far each key lies behind the query: ``(query, key)``, negative for later keys."""
        return self.positions[:, None] - self.keys

    @cached_property
    def first(self) -> Tensor:
        """Position of the first key that any query sees: ``(batch or 1, head or 1)``."""
        return self.visible.any(-2).to(torch.uint8).argmax(-1)

    def of_queries(self, of_keys: Tensor) -> Tensor:
        """Pick a ``(batch or 1, key)`` property at the queries: ``(batch or 1, 1, query, 1)``."""
        return of_keys[:, None, self.positions.clamp(min=0), None]

    @staticmethod
    def of_keys(of_keys: Tensor) -> Tensor:
        """Lay a ``(batch or 1, key)`` property along the keys: ``(batch or 1, 1, 1, key)``."""
        return of_keys[:, None, None, :]


@dataclass(frozen=True, eq=False)
class Marks:
    """What is known of the keys beside their places, each ``(batch or 1, key)`` or None.

    Attributes:
        tokens: A number per distinct token.
        segments: Number of each key's segment.
        delimiters: Which keys are delimiters, bool.
    """

    tokens: Tensor | None = None
    segments: Tensor | None = None
    delimiters: Tensor | None = None

    def part(self, batch: slice) -> Marks:
        """Return the marks of some sequences."""

        def rows(held: Tensor | None) -> Tensor | None:
            return held if held is None or held.shape[0] == 1 else held[batch]

        return Marks(rows(self.tokens), rows(self.segments), rows(self.delimiters))


def read_marks(
    layer: LayerAttention,
    tokens: Any = None,
    segment_ids: Any = None,
    delimiters: Collection[Any] | None = None,
) -> Marks:
    """Read what a caller tells of the keys; the arguments and errors are those of `make_grid`."""
    held = None if layer.kind == "cross" else _per_key(tokens, layer, "tokens")
    segments = _per_key(segment_ids, layer, "segment_ids")
    if delimiters is not None:
        _as_delimiters(delimiters)
        if held is None and layer.kind != "cross":
            raise ValueError("delimiters: a set of tokens says nothing without tokens=; pass both")
    marks = None if held is None else is_delimiter(held, delimiters)
    return Marks(
        tokens=None if held is None else encode_tokens(held).to(layer.device),
        segments=None if segments is None else encode_tokens(segments).to(layer.device),
        delimiters=None if marks is None else marks.to(layer.device),
    )


def make_grid(
    layer: LayerAttention,
    tokens: Any = None,
    segment_ids: Any = None,
    delimiters: Collection[Any] | None = None,
) -> Grid:
    """Build the grid of a layer.

    Args:
        layer: The layer.
        tokens: Strings or ids, ``(key,)`` or ``(batch, key)``; ignored for cross-attention, whose
            keys they do not describe.
        segment_ids: Segment of each key, ``(key,)`` or ``(batch, key)``.
        delimiters: The tokens that count as delimiters. Default: `DELIMITERS`, if tokens are
            strings.

    Raises:
        ValueError: A length is not that of the keys, or of the batch.
    """
    marks = read_marks(layer, tokens, segment_ids, delimiters)
    return Grid(
        visible=layer.visible(),
        positions=layer.query_positions(),
        positional=layer.positional,
        causal=layer.causal,
        tokens=marks.tokens,
        segments=marks.segments,
        delimiters=marks.delimiters,
    )


def _per_key(given: Any, layer: LayerAttention, name: str) -> list[list[Any]] | None:
    """Return one list per sequence (or one for all), checked against the layer."""
    if given is None:
        return None
    if isinstance(given, str):
        raise ValueError(f"{name}: got one string {given[:20]!r}; expected one entry per key")
    if not isinstance(given, Iterable) or getattr(given, "ndim", 1) == 0:
        raise TypeError(f"{name}: {given!r} is {type(given).__name__}; expected one entry per key")
    listed = given.tolist() if hasattr(given, "tolist") else list(given)
    rows = [list(row) for row in listed] if _is_nested(listed) else [listed]
    if len(rows) not in (1, layer.batch):
        raise ValueError(f"{name}: {len(rows)} sequences for a batch of {layer.batch}")
    for row in rows:
        if len(row) != layer.n_key:
            raise ValueError(
                f"{name}: {len(row)} entries for {layer.n_key} keys of {layer.name}; "
                "pass one per key, special tokens included"
            )
    return rows


def _is_nested(listed: list[Any]) -> bool:
    return bool(listed) and not isinstance(listed[0], str) and isinstance(listed[0], Iterable)


def encode_tokens(rows: list[list[Any]]) -> Tensor:
    """Number the distinct tokens: ``(batch, key)``, equal numbers for equal tokens.

    Example:
        >>> encode_tokens([["to", "be", "or", "not", "to", "be"]]).tolist()
        [[0, 1, 2, 3, 0, 1]]
        >>> encode_tokens([[7, -1, 7]]).tolist()
        [[1, 0, 1]]
    """
    if rows and rows[0] and isinstance(rows[0][0], int):
        ids = np.asarray(rows)
        if ids.dtype.kind == "i":
            return torch.from_numpy(np.unique(ids, return_inverse=True)[1].reshape(ids.shape))
    numbers: dict[Any, int] = {}
    return torch.tensor([[numbers.setdefault(t, len(numbers)) for t in row] for row in rows])


def is_delimiter(rows: list[list[Any]], delimiters: Collection[Any] | None = None) -> Tensor | None:
    """Mark the delimiters, ``(batch, key)``; None if nobody said which ids are delimiters.

    Raises:
        TypeError: ``delimiters`` is no collection of tokens.
        ValueError: It is one string, or of another kind than the tokens.

    Example:
        >>> is_delimiter([["Hello", ",", "world", "."]]).tolist()
        [[False, True, False, True]]
    """
    if delimiters is None:
        if not all(isinstance(token, str) for row in rows for token in row):
            return None
        delimiters = DELIMITERS
    wanted = _as_delimiters(delimiters)
    kinds = {isinstance(token, str) for row in rows for token in row}
    if wanted and kinds and kinds.isdisjoint(isinstance(token, str) for token in wanted):
        words, ids = "strings", "ids"
        have, given = (words, ids) if True in kinds else (ids, words)
        raise ValueError(f"delimiters: are {given}, but tokens are {have}; pass both as {have}")

    def bare(token: Any) -> Any:
        return (token.lstrip(WORD_STARTS) or token) if isinstance(token, str) else token

    return torch.tensor([[token in wanted or bare(token) in wanted for token in r] for r in rows])


def _as_delimiters(delimiters: Any) -> set[Any]:
    """Return the tokens that count as delimiters."""
    if isinstance(delimiters, str):
        raise ValueError(
            f"delimiters: got one string {delimiters[:20]!r}; expected a collection of tokens: "
            f"pass [{delimiters[:20]!r}]"
        )
    listed = delimiters.tolist() if hasattr(delimiters, "tolist") else delimiters
    try:
        return set(listed)
    except TypeError:
        raise TypeError(
            f"delimiters: got {delimiters!r:.40}; expected a collection of tokens, such as "
            "['.', ','] or token ids"
        ) from None


def tokens_with_repeats(seq_len: int, period: int | None = None) -> list[int]:
    """Return the tokens that token-conditioned patterns are built on where none are given.

    Args:
        seq_len: How many.
        period: After how many distinct tokens they repeat. Default: half of ``seq_len``, rounded
            up, so that the sequence holds two copies of one block.

    Example:
        >>> tokens_with_repeats(6)
        [0, 1, 2, 0, 1, 2]
    """
    period = max(1, -(-seq_len // 2)) if period is None else period
    return [position % period for position in range(seq_len)]
