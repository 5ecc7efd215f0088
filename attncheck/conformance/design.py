"""Which inputs to try: a covering design over the axes of a `Case`, in code and repeatable.

A bug often needs two or three rare conditions at once. A covering design is a list of cases in
which, as far as its length allows, every pair and every triple of levels of its axes occurs
together; it is built greedily, each case chosen among candidates for the new triples it brings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from attncheck.conformance.case import Case
from attncheck.conformance.kinds import (
    BOOL_PATTERNS,
    FLOAT_PATTERNS,
    LAYOUTS,
    LOOKALIKES,
    MASK_LAYOUTS,
    SCALES,
    USUAL_CONTENTS,
)

__all__ = [
    "HEADS",
    "LENGTHS",
    "MASK_SHAPES",
    "RARE_PATTERNS",
    "SIZES",
    "Plan",
    "covering",
    "general_levels",
]

Levels = Mapping[str, Sequence[Any]]

LENGTHS: Final = (1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129)
"""Sequence lengths: small, odd, and on both sides of usual block sizes."""

SIZES: Final = (1, 3, 8, 16, 17, 32, 64, 80, 96, 128, 256)
"""Head sizes, padded ones among them."""

HEADS: Final = ((1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (2, 3), (1, 4), (3, 4), (1, 8), (5, 1))
"""Pairs of key-value heads and query heads per key-value head."""

MASK_SHAPES: Final = (
    "qk", "1k", "q1", "11",
    "hqk", "h1k", "1qk", "11k", "hq1",
    *("".join(bits) for bits in (
        (b, h, q, k) for b in "b1" for h in "h1" for q in "q1" for k in "k1"
    )),
)  # fmt: skip
"""Every shape that broadcasts to the weights: full or 1 on each axis, in 2, 3 and 4 dimensions."""

RARE_PATTERNS: Final = (
    *("none", "all lowest", "lowest and hidden", "all hidden", "zeros"),
    *LOOKALIKES,
)
"""Masks that have properties of their own, and teach little about other axes."""

SAME: Final = "same"
"""Level of a size that equals the one it is paired with."""

INACTIVE: Final[Mapping[str, tuple[str, Any]]] = {
    "mask_shape": ("mask", "none"),
    "pattern": ("mask", "none"),
    "mask_layout": ("mask", "none"),
    "layout_on": ("layout", "contiguous"),
}
"""An axis means nothing while another has a certain level: such combinations count for nothing."""


@dataclass(frozen=True)
class Plan:
    """How much to try, and what the implementation supports.

    Attributes:
        effort: ``"quick"``, ``"default"`` or ``"thorough"``.
        seed: Chooses cases and numbers; the same seed gives the same cases.
        dtypes: Names of the dtypes that are supported, and as accurate as they say.
        accepted: Names of all dtypes that are accepted.
        refused: Names of features that are not supported, as in `Capabilities`.
    """

    effort: str = "default"
    seed: int = 0
    dtypes: tuple[str, ...] = ("float32", "float64", "float16", "bfloat16")
    refused: frozenset[str] = frozenset()
    accepted: tuple[str, ...] = ()

    def pick(self, quick: int, default: int, thorough: int) -> int:
        """Return the number that belongs to this effort."""
        return {"quick": quick, "default": default, "thorough": thorough}[self.effort]

    def fit(self, case: Case) -> Case:
        """Drop from a case a combination that is not supported, as `narrow` does for levels."""
        if case.causal and case.mask != "none" and "mask_with_causal" in self.refused:
            return replace(case, causal=False)
        if case.n_query != case.n_key and "rectangular" in self.refused:
            return replace(case, n_key=case.n_query)
        if case.value_size != case.size and "value_size" in self.refused:
            return replace(case, value_size=case.size)
        return case

    def narrow(self, levels: Levels) -> dict[str, tuple[Any, ...]]:
        """Drop the levels that the implementation does not support."""
        drop: dict[str, Any] = {
            "gqa": ("heads", lambda pair: pair[1] > 1),
            "bool": ("mask", lambda mask: mask == "bool"),
            "float": ("mask", lambda mask: mask == "float"),
            "causal": ("causal", bool),
            "scale": ("scale", lambda scale: scale != "default"),
            "value_size": ("value_size", lambda size: size != SAME),
            "rectangular": ("n_key", lambda size: size != SAME),
            "gradients": ("grad", bool),
            "strided": ("layout", lambda layout: layout != "contiguous"),
        }
        found = {name: tuple(values) for name, values in levels.items()}
        found["dtype"] = tuple(d for d in found.get("dtype", self.dtypes) if d in self.dtypes)
        for rank in (2, 3, 5):
            if f"rank{rank}" in self.refused and "rank" in found:
                found["rank"] = tuple(r for r in found["rank"] if r != rank) or (4,)
        for feature in self.refused & set(drop):
            axis, unsupported = drop[feature]
            kept = tuple(value for value in found.get(axis, ()) if not unsupported(value))
            if kept:
                found[axis] = kept
        return found


def general_levels(dtypes: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Return the levels of all axes at once: what the general design covers."""
    patterns = tuple(dict.fromkeys([*BOOL_PATTERNS, *FLOAT_PATTERNS]))
    return {
        "rank": (4, 3, 2, 5),
        "batch": (1, 2, 3, 5, 8),
        "heads": HEADS,
        "n_query": LENGTHS,
        "n_key": (SAME, *LENGTHS),
        "size": SIZES,
        "value_size": (SAME, 1, 8, 17, 64, 128),
        "dtype": tuple(dtypes),
        "mask": ("none", "bool", "float"),
        "mask_shape": MASK_SHAPES,
        "pattern": tuple(p for p in patterns if p not in RARE_PATTERNS),
        "mask_layout": tuple(MASK_LAYOUTS),
        "causal": (False, True),
        "scale": tuple(SCALES),
        "layout": tuple(LAYOUTS),
        "layout_on": ("qkv", "q", "k", "v", "kv"),
        "content": USUAL_CONTENTS,
        "grad": (False, True),
    }


def covering(
    levels: Levels, count: int, seed: int, *, base: Case | None = None, limit: int = 12_000_000
) -> list[Case]:
    """Return ``count`` cases that cover as many triples of levels as they can.

    Args:
        levels: For each axis its levels. An axis is a field of `Case`, or ``heads`` for pairs of
            (key-value heads, ratio); ``"same"`` ties ``n_key`` to ``n_query`` and ``value_size``
            to ``size``.
        count: Number of cases.
        seed: Chooses among equals.
        base: Levels of all other axes; the default `Case`.
        limit: Largest `Case.work`; larger cases lose batch, heads and then head size.

    Example:
        >>> cases = covering({"causal": (False, True), "n_query": (1, 2)}, 4, seed=0)
        >>> sorted((case.causal, case.n_query) for case in cases)
        [(False, 1), (False, 2), (True, 1), (True, 2)]
    """
    frozen = tuple((name, tuple(values)) for name, values in sorted(levels.items()) if values)
    return list(_covering(frozen, count, seed, base or Case(), limit))


@lru_cache(maxsize=256)
def _covering(
    levels: tuple[tuple[str, tuple[Any, ...]], ...], count: int, seed: int, base: Case, limit: int
) -> tuple[Case, ...]:
    names = [name for name, _ in levels]
    rows = _greedy_rows(levels, count, seed)
    cases = []
    for number, row in enumerate(rows):
        chosen = {name: levels[axis][1][row[axis]] for axis, name in enumerate(names)}
        case = lighten(_case_of(chosen, base).legal(), limit)
        if case.causal and case.scale in ("zero", "negative"):
            case = replace(case, scale="given")  # a property of its own
        cases.append(replace(case.legal(), seed=1000 * seed + number))
    return tuple(cases)


def _greedy_rows(
    levels: tuple[tuple[str, tuple[Any, ...]], ...], count: int, seed: int
) -> NDArray[np.int64]:
    """Choose rows of level numbers, each for the uncovered triples (or pairs) it brings."""
    sizes = np.array([len(values) for _, values in levels])
    strength = min(3, len(levels))
    groups = np.array(list(combinations(range(len(levels)), strength)))
    cells = np.prod(sizes[groups], axis=1)
    starts = np.concatenate([[0], np.cumsum(cells)[:-1]])
    strides = np.ones_like(groups)
    for position in range(strength - 2, -1, -1):
        strides[:, position] = strides[:, position + 1] * sizes[groups[:, position + 1]]
    uncovered = np.ones(int(cells.sum()), dtype=bool)
    random = np.random.default_rng(seed)
    rows = np.empty((count, len(levels)), dtype=np.int64)
    for number in range(count):
        candidates = random.integers(0, sizes, size=(24, len(levels)))
        flat = (candidates[:, groups] * strides).sum(-1) + starts
        active: NDArray[np.bool_] = np.all(_active(candidates, levels)[:, groups], axis=2)
        best = int((uncovered[flat] & active).sum(-1).argmax())
        rows[number] = candidates[best]
        uncovered[flat[best][active[best]]] = False
    return rows


def _active(
    rows: NDArray[np.int64], levels: tuple[tuple[str, tuple[Any, ...]], ...]
) -> NDArray[np.bool_]:
    """Say for each row which axes mean something."""
    names = [name for name, _ in levels]
    active: NDArray[np.bool_] = np.ones(rows.shape, dtype=np.bool_)
    for axis, (other, level) in INACTIVE.items():
        if axis in names and other in names:
            values = levels[names.index(other)][1]
            if level in values:
                active[:, names.index(axis)] = rows[:, names.index(other)] != values.index(level)
    return active


def _case_of(chosen: Mapping[str, Any], base: Case) -> Case:
    changes = dict(chosen)
    if "heads" in changes:
        changes["kv_heads"], changes["ratio"] = changes.pop("heads")
    if changes.get("n_key", 0) == SAME:
        changes["n_key"] = changes.get("n_query", base.n_query)
    if changes.get("value_size", SAME) == SAME:
        changes["value_size"] = changes.get("size", base.size)
    return replace(base, **changes)


def lighten(case: Case, limit: int) -> Case:
    """Shrink batch, heads and at last head sizes until the case costs at most ``limit``."""
    return _shrunk(
        case,
        limit,
        (("batch", 2), ("kv_heads", 2), ("ratio", 2), ("size", 17), ("value_size", 17),
         ("batch", 1), ("kv_heads", 1), ("ratio", 1)),
    )  # fmt: skip


def lighten_in_turn(case: Case, limit: int) -> Case:
    """Shrink the axes in an order of each seed's own, so that each large size meets each other."""
    axes = [
        ("n_query", 3), ("n_key", 3), ("batch", 1), ("kv_heads", 1), ("size", 8), ("value_size", 8),
    ]  # fmt: skip
    order = [axes[i] for i in np.random.default_rng(case.seed).permutation(len(axes))]
    return _shrunk(case, limit, (*order, ("ratio", 1), ("n_key", 1), ("n_query", 1)))


def _shrunk(case: Case, limit: int, order: Sequence[tuple[str, int]]) -> Case:
    for name, least in order:
        while case.work > limit and getattr(case, name) > least:
            case = replace(case, **{name: max(least, getattr(case, name) // 4)})
    return case


def coverage(levels: Levels, cases: Sequence[Case], strength: int = 2) -> float:
    """Return the share of all ``strength``-tuples of levels that occur in some case.

    Example:
        >>> coverage({"causal": (False, True), "n_query": (1, 2)}, [Case(n_query=1)])
        0.25
    """
    wanted = found = 0
    for names in combinations(levels, strength):
        seen = {tuple(_level(case, name) for name in names) for case in cases}
        total = int(np.prod([len(levels[name]) for name in names]))
        wanted += total
        found += min(len(seen), total)
    return found / wanted


def _level(case: Case, name: str) -> Any:
    return (case.kv_heads, case.ratio) if name == "heads" else getattr(case, name)
