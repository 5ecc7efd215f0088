"""Agreement with the oracle over everything at once: the covering designs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from attncheck.conformance.case import Case
from attncheck.conformance.design import (
    MASK_SHAPES,
    SAME,
    Plan,
    covering,
    general_levels,
    lighten_in_turn,
)
from attncheck.conformance.examine import agrees
from attncheck.conformance.kinds import LAYOUTS
from attncheck.conformance.registry import register

THREE_FACTORS = "Kuhn, Wallace, Gallo 2004, Software Fault Interactions, IEEE TSE 30(6)"
LONG = (255, 256, 257, 511, 512, 513, 1023, 1024, 1025, 2047, 2048, 2049, 2500)


VERY_LONG = (4097, 8193, 10_001)


def separate(cases: Sequence[Case], plan: Plan, both: int = 4) -> list[Case]:
    """Keep a mask together with ``is_causal`` in one case of ``both``, as its documentation asks.

    The others keep the mask or the flag, in turn.
    """
    kept = []
    for number, case in enumerate(cases):
        if case.causal and case.mask != "none" and number % both:
            only = {"causal": False} if number % 2 else {"mask": "none"}
            case = replace(case, **only).legal()
        kept.append(plan.fit(case))
    return kept


def general_cases(plan: Plan) -> Sequence[Case]:
    """Return the design over all axes."""
    levels = plan.narrow(general_levels(plan.dtypes))
    return separate(covering(levels, plan.pick(180, 1700, 12_000), plan.seed), plan)


def small_cases(plan: Plan) -> Sequence[Case]:
    """Return the design over flags, masks and layouts, at sizes that cost little."""
    levels = general_levels(plan.dtypes) | {
        "n_query": (1, 2, 4, 5, 7, 9),
        "n_key": (SAME, 1, 2, 4, 5, 7, 10),
        "size": (1, 2, 4, 6, 8),
        "value_size": (SAME, 2, 4, 5),
    }
    return separate(covering(plan.narrow(levels), plan.pick(200, 1500, 6000), plan.seed + 1), plan)


def block_cases(plan: Plan) -> Sequence[Case]:
    """Return every pair of lengths around block sizes, with what meets blocks: masks, causality."""
    around = (1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
    levels = {
        "n_query": around,
        "n_key": (SAME, SAME, *around),
        "causal": (False, True),
        "mask": ("none", "bool", "float"),
        "mask_shape": ("qk", "11k", "11qk", "b11k", "bhqk"),
        "pattern": ("random", "padding", "left padding", "empty rows"),
        "content": ("normal", "large", "growing", "falling"),
        "dtype": plan.dtypes,
        "grad": (False, False, True),
    }
    found = covering(
        plan.narrow(levels), plan.pick(120, 900, 3000), plan.seed, base=Case(batch=2, kv_heads=2)
    )
    return separate(found, plan, both=2)


def long_cases(plan: Plan) -> Sequence[Case]:
    """Return lengths up to one past 2,048 on one side, few on the other, and some on both."""
    levels = {
        "n_key": LONG,
        "n_query": (1, 2, 3, 17),
        "heads": ((1, 1), (2, 1), (1, 2), (3, 1), (1, 3), (1, 8)),
        "batch": (1, 2, 3),
        "size": (4, 16, 17, 64),
        "dtype": plan.dtypes,
        "mask": ("none", "bool", "float"),
        "mask_shape": ("qk", "1k", "11k", "b11k", "1h1k", "bhqk", "bh11", "b1qk"),
        "pattern": ("random", "padding", "left padding", "holes", "empty rows", "one key"),
        "causal": (False, True),
        "scale": ("default", "given", "tensor"),
        "layout": ("contiguous", "heads last", "columns", "every second row", "packed"),
        "layout_on": ("qkv", "k", "v"),
        "content": ("normal", "positive", "growing", "falling", "offset values"),
        "grad": (False, True),
    }
    narrowed = plan.narrow(levels)
    found = covering(narrowed, plan.pick(40, 260, 1200), plan.seed, limit=3_000_000)
    turned = [replace(case, n_query=case.n_key, n_key=case.n_query).legal() for case in found[::2]]
    longest = [
        Case(n_query=q, n_key=k, size=8, value_size=8, causal=c, mask=m, dtype=dtype).legal()
        for q, k, c, m in (
            (2, 4097, False, "none"),
            (3, 8193, False, "bool"),
            (2, 16_385, False, "none"),
            (1, 32_769, False, "none"),
            (1, 65_537, False, "none"),
            (32_769, 2, False, "none"),
            (65_537, 1, False, "none"),
            (4097, 3, True, "none"),
            (8193, 5, False, "float"),
        )
        for dtype in plan.dtypes[:1]
        if m not in plan.refused and not (c and "causal" in plan.refused)
    ]
    beyond = {
        "n_key": VERY_LONG, "n_query": (1, 2, 3), "batch": (1, 2), "size": (2, 5, 8),
        "heads": ((1, 1), (2, 1), (1, 2)), "value_size": (SAME, 3), "dtype": plan.dtypes,
        "rank": (4, 4, 3, 5), "mask": ("none", "bool", "float"),
        "mask_shape": ("qk", "1k", "b11k", "bhqk", "1hq1"),
        "pattern": ("random", "padding", "left padding", "empty rows", "holes"),
        "causal": (False, True), "scale": ("default", "given"), "grad": (False, True),
        "layout": ("contiguous", "heads last", "columns"), "layout_on": ("qkv", "k", "v"),
        "content": ("normal", "growing", "positive"),
    }  # fmt: skip
    narrow, count = plan.narrow(beyond), plan.pick(1, 24, 60)
    most = covering(narrow, count, plan.seed, limit=3_000_000)
    turned += [
        replace(case, n_query=case.n_key, n_key=case.n_query).legal()
        for case in covering(narrow, count, plan.seed + 1, limit=3_000_000)
    ]
    if "rectangular" in plan.refused:
        turned, longest, most = [], [], []
    return separate(found + turned + most + longest[: plan.pick(2, 9, 9)], plan)


def square_cases(plan: Plan) -> Sequence[Case]:
    """Return long sequences on both sides."""
    levels = {
        "n_query": (255, 257, 512, 513, 1023, 1024, 1025),
        "causal": (False, True),
        "mask": ("none", "bool", "float"),
        "mask_shape": ("qk", "11k", "b11k", "bhqk"),
        "pattern": ("random", "padding", "left padding"),
        "dtype": plan.dtypes[:2],
        "heads": ((1, 1), (2, 1), (1, 2)),
        "content": ("normal", "growing"),
    }
    base = Case(size=8, value_size=8)
    found = covering(
        plan.narrow({**levels, "n_key": (SAME,)}), plan.pick(3, 24, 80), plan.seed, base=base
    )
    past = [
        replace(base, n_query=2049, n_key=n, causal=c, mask=m, mask_shape="qk", pattern=p).legal()
        for n, c, m, p in (
            (2049, True, "none", "random"),
            (2049, False, "bool", "random"),
            (2100, False, "none", "random"),
            (2060, True, "none", "random"),
            (2049, False, "float", "holes"),
        )
    ]
    past += [
        replace(base, n_query=q, n_key=k, causal=q > 1000, size=size, value_size=size)
        for q, k, size in ((2100, 2049, 8), (1100, 1025, 16), (600, 513, 8), (300, 257, 17))
        if "rectangular" not in plan.refused
    ]
    both = {
        "n_query": (257, 400, 513, 700, 1025), "n_key": (260, 300, 520, 640, 1100),
        "causal": (True, True, False), "mask": ("none", "bool", "float"),
        "mask_shape": ("qk", "11k", "b11k"), "pattern": ("random", "padding"),
        "heads": ((1, 1), (2, 1), (1, 2)), "dtype": plan.dtypes, "size": (4, 9),
        "content": ("normal", "growing"), "grad": (False, True),
    }  # fmt: skip
    unequal = covering(plan.narrow(both), plan.pick(1, 14, 50), plan.seed, limit=15_000_000)
    if "rectangular" in plan.refused:
        unequal = []
    past = past[: plan.pick(1, 9, 9)] + unequal
    return separate(found + [plan.fit(case) for case in past], plan)


def large_cases(plan: Plan) -> Sequence[Case]:
    """Return cases in which each large size meets every other axis, and other large sizes."""
    sizes = (1, 3, 5, 33, 63, 64, 65, 127, 129, 255, 257, 513, 1025, 2049, 2300)
    levels = general_levels(plan.dtypes) | {
        "rank": (4, 4, 4, 3, 5, 2),
        "batch": (1, 2, 3, 5, 9, 17),
        "heads": ((1, 1), (2, 1), (3, 1), (9, 1), (17, 1), (33, 1), (1, 4), (1, 8), (2, 3), (3, 3),
                  (3, 2), (2, 8), (1, 16), (5, 5)),
        "n_query": sizes,
        "n_key": (SAME, *sizes),
        "size": (1, 4, 8, 16, 17, 64, 65, 80, 96, 128, 256),
        "value_size": (SAME, SAME, 3, 16, 72, 129),
        "layout": tuple(LAYOUTS),
    }  # fmt: skip
    # Greedy choice first, then the cost: whichever axis gives way differs from case to case.
    found = covering(plan.narrow(levels), plan.pick(40, 420, 4000), plan.seed + 2, limit=10**15)
    return separate([lighten_in_turn(case, 4_000_000).legal() for case in found], plan)


def batch_cases(plan: Plan) -> Sequence[Case]:
    """Return many batches and heads, beyond the limits of small counters, with tiny sequences."""
    levels = {
        "batch": (9, 16, 17, 33, 64, 65, 129, 257, 520, 1030),
        "heads": ((1, 1), (7, 1), (16, 1), (33, 1), (1, 16), (2, 6), (13, 2), (65, 1), (64, 1),
                  (129, 1), (3, 16), (2, 32), (3, 12)),
        "n_query": (1, 2, 3),
        "n_key": (SAME, 1, 3, 5),
        "size": (2, 8),
        "mask": ("none", "bool", "float"),
        "mask_shape": MASK_SHAPES,
        "pattern": ("random", "padding"),
        "causal": (False, True),
        "dtype": plan.dtypes,
        "layout": ("contiguous", "heads last", "reversed axes", "expanded batch"),
        "grad": (False, True),
    }  # fmt: skip
    found = covering(plan.narrow(levels), plan.pick(20, 160, 600), plan.seed, limit=6_000_000)
    huge = [Case(batch=70_000, n_query=2, n_key=2, size=2, value_size=2),
            Case(batch=1, kv_heads=66_000, n_query=1, n_key=3, size=2, value_size=2),
            Case(batch=260, kv_heads=257, n_query=2, n_key=1, size=1, value_size=1)]  # fmt: skip
    huge += [
        replace(huge[0], causal=True),
        replace(huge[0], mask="float", mask_shape="b1qk"),
        replace(huge[1], mask="bool", mask_shape="1h1k"),
        replace(huge[2], kv_heads=1, ratio=257, gqa=True),
        replace(huge[0], grad=True, dtype=plan.dtypes[-1]),
        replace(huge[2], dtype=plan.dtypes[-1], n_key=3, causal=True),
    ]
    words = {"causal": "causal", "mask_bool": "bool", "mask_float": "float", "gqa": "gqa"}
    kept = [
        case
        for case in huge
        if not any(
            word in plan.refused and (getattr(case, name, False) or name == f"mask_{case.mask}")
            for name, word in words.items()
        )
        and not (case.grad and "gradients" in plan.refused)
    ]
    return separate(found, plan) + [plan.fit(case) for case in kept[: plan.pick(1, 9, 9)]]


for _id, _reason, _source, _cases in (
    (
        "design-small",
        "flags, masks, layouts and ranks interact, whatever the size",
        THREE_FACTORS,
        small_cases,
    ),
    (
        "design-general",
        "a bug that needs two or three rare conditions at once passes any hand-picked input",
        THREE_FACTORS,
        general_cases,
    ),
    (
        "lengths-blocks",
        "kernels work in tiles: the last, partly filled one is where they go wrong",
        "https://github.com/Dao-AILab/flash-attention/blob/main/tests/test_flash_attn.py",
        block_cases,
    ),
    (
        "lengths-long",
        "loops over many tiles, split keys and buffers of fixed size fail only on long inputs",
        "https://github.com/pytorch/pytorch/blob/main/test/test_transformers.py",
        long_cases,
    ),
    (
        "lengths-square",
        "both loops run over many tiles at once",
        "https://github.com/pytorch/pytorch/blob/main/test/test_transformers.py",
        square_cases,
    ),
    (
        "design-large",
        "a long sequence, a large batch, many heads and big heads meet layouts, masks and flags",
        THREE_FACTORS,
        large_cases,
    ),
    (
        "batch-large",
        "grids of at most 65,535 blocks and small counters wrap around",
        "https://github.com/pytorch/pytorch/issues/142228; "
        "https://github.com/flashinfer-ai/flashinfer/issues/3125",
        batch_cases,
    ),
):
    _tags = ("threads",) if _id == "lengths-square" else ()
    register(_id, "design", reason=_reason, source=_source, cases=_cases, tags=_tags)(agrees)
