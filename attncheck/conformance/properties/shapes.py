"""Shapes, ranks, head sizes, strides, empty axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from attncheck.conformance.bases import designed
from attncheck.conformance.case import Case
from attncheck.conformance.design import SIZES, Plan
from attncheck.conformance.examine import agrees, check_form
from attncheck.conformance.kinds import LAYOUTS, MASK_LAYOUTS
from attncheck.conformance.registry import register
from attncheck.conformance.subject import Subject, Violation

DOCUMENTED = (
    "https://docs.pytorch.org/docs/stable/generated/"
    "torch.nn.functional.scaled_dot_product_attention.html"
)

register(
    "shape-ranks",
    "shape",
    reason="any number of leading axes: 2-D, 3-D, 4-D and 5-D inputs",
    source=DOCUMENTED,
    cases=designed(
        12, 60, 160, rank=(2, 3, 4, 5), batch=(1, 2, 3), heads=((1, 1), (2, 1), (3, 1), (1, 2)),
        n_query=(1, 4, 17), n_key=("same", 5), mask=("none", "bool", "float"),
        mask_shape=("qk", "1k", "hqk", "bhqk", "b11k"), causal=(False, True), grad=(False, True),
    ),
)(agrees)  # fmt: skip

register(
    "shape-mask-ranks",
    "shape",
    reason="a mask of five axes broadcasts on each of them",
    source=DOCUMENTED,
    cases=designed(
        6, 24, 60, rank=(5,), batch=(2, 3), heads=((2, 1), (3, 1), (1, 2)), n_query=(4, 17),
        n_key=("same", 5), mask=("bool", "float"), grad=(False, True),
        mask_shape=("1bhqk", "lbhqk", "l1hqk", "1b1qk", "l111k", "1b11k"),
    ),
)(agrees)  # fmt: skip

register(
    "shape-head-sizes",
    "shape",
    reason="head sizes that are odd, small, padded or unequal between query and value",
    source="https://github.com/pytorch/pytorch/blob/main/test/test_transformers.py (head_dim % 8)",
    cases=designed(
        24, 120, 300, size=(*SIZES, 48, 72, 160, 192, 320, 576),
        value_size=("same", *SIZES, 512), n_query=(1, 5, 33),
        n_key=("same", 7, 65), mask=("none", "bool"), mask_shape=("qk",), causal=(False, True),
        grad=(False, True), heads=((1, 1), (1, 2)),
    ),
)(agrees)  # fmt: skip

register(
    "layout-strides",
    "layout",
    reason="inputs arrive transposed, sliced, expanded, offset, packed: strides must be honoured",
    source="https://github.com/pytorch/pytorch/issues/112577; .../pull/187506; "
    "https://github.com/flagos-ai/FlagGems/issues/5896",
    cases=designed(
        40, 220, 700, layout=tuple(name for name in LAYOUTS if name != "contiguous"),
        layout_on=("qkv", "q", "k", "v", "kv"), rank=(4, 4, 3, 5, 2), batch=(1, 2, 3),
        heads=((1, 1), (2, 1), (3, 1), (1, 2), (2, 2)), n_query=(1, 4, 17, 65),
        n_key=("same", "same", 6, 33), size=(1, 8, 17, 64), value_size=("same", "same", 4),
        mask=("none", "bool", "float"), mask_shape=("qk", "b11k", "bhqk"),
        mask_layout=tuple(MASK_LAYOUTS),
        causal=(False, True), grad=(False, True),
    ),
)(agrees)  # fmt: skip


def empty_cases(plan: Plan) -> Sequence[Case]:
    """Return cases with one axis of size 0, plain, causal and masked."""
    axes: list[dict[str, Any]] = [
        {"n_query": 0},
        {"batch": 0},
        {"n_key": 0},
        {"kv_heads": 0},
        {"value_size": 0},
    ]
    if "rectangular" in plan.refused:
        axes = [axis for axis in axes if not {"n_query", "n_key"} & set(axis)]
    if "value_size" in plan.refused:
        axes = axes[:-1]
    found = []
    for axis in axes:
        plain = replace(Case(batch=2, kv_heads=2, n_query=3, n_key=4), **axis)
        found += [plain, replace(plain, causal=True)]
        if "bool" not in plan.refused:
            found.append(replace(plain, mask="bool", mask_shape="qk", pattern="all"))
        if "float" not in plan.refused:
            found.append(replace(plain, mask="float", mask_shape="bhqk", pattern="zeros"))
    kept = [case for case in found if not (case.causal and "causal" in plan.refused)]
    return [replace(case, dtype=dtype) for dtype in plan.dtypes[:3:2] for case in kept]


@register(
    "shape-empty",
    "shape",
    reason="an empty axis gives an empty output, and no keys give zeros: not a crash, not NaN",
    source="empty batches are real in data-parallel training; torch returns zeros for no keys",
    cases=empty_cases,
    script="""got = {call}
print(got.shape, got.abs().sum())  # expected the shape of the query with the values' size, 0
assert got.shape == (*q.shape[:-1], v.shape[-1]) and got.abs().sum() == 0""",
)
def empty_axes(subject: Subject, case: Case) -> None:
    """Check the shape, and that what is not empty is zero."""
    inputs = subject.build(case)
    result = subject.call(inputs)
    check_form(result, inputs)
    output = result.output
    if 0 not in (*output.shape, case.n_key):
        return
    if bool(output.isnan().any()) or bool(output.any()):
        raise Violation("an attention without keys is not zero")
