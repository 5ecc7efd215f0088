"""Properties that came after mistakes which an earlier battery let by, and what they leave open."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from attncheck.conformance import check_attention
from attncheck.conformance.case import Case
from tests.conformance.implementations import einsum_attention
from tests.conformance.mutants import MUTANTS
from tests.conformance.unusual import by_log_sum, by_merged_log_sums

FOUND_BY = {
    "dropout-loses-row-mask": "dropout-masks",
    "dropout-shared-by-group": "dropout-masks",
    "dropout-repeats-by-16": "dropout-weights",
    "scale-negative-causal-peak": "scale-negative-causal",
    "layout-mask-row-stride": "mask-slice",
    "state-longest-workspace": "state-sizes-shrink",
    "gradient-key-is-value": "gradient-shared",
    "gradient-of-the-last-call": "gradient-two-calls",
    "gradient-twice-adds-up": "gradient-direction",
    "dropout-delta-of-all-weights": "dropout-gradient",
    "gradient-key-summed-in-half": "gradient-accumulation",
    "state-keeps-outputs": "state-memory-released",
    "state-keeps-keys": "state-memory-released",
    "dropout-seeds-anew": "dropout-seeded",
    "mask-causal-by-corners": "mask-looks-causal",
    "shape-five-axes-one-mask": "shape-mask-ranks",
    "dtype-saturating-sum": "softmax-many-alike",
    "causal-half-positions": "causal-positions",
    "state-flags-of-all-threads": "state-threads",
}


@pytest.mark.parametrize("name", FOUND_BY)
def test_survivors_die_at_once(name: str) -> None:
    report = check_attention(
        MUTANTS[name].make(), effort="quick", select=[FOUND_BY[name]], raises=False
    )
    assert report.failures, name


def test_right_code_passes() -> None:
    check_attention(einsum_attention, effort="quick", select=set(FOUND_BY.values()))


def nan_for_lowest(q: Tensor, k: Tensor, v: Tensor, **flags: Any) -> Tensor:
    mask = flags.get("attn_mask")
    output: Tensor = einsum_attention(q, k, v, **flags)
    return output if mask is None or mask.amax() > -1e30 else output * float("nan")


@pytest.mark.parametrize(
    ("function", "passes"),
    [(einsum_attention, True), (by_merged_log_sums, True), (by_log_sum, False),
     (nan_for_lowest, False)],
)  # fmt: skip
def test_a_row_of_lowest_numbers_gives_some_average(
    function: Callable[..., Any], passes: bool
) -> None:
    """Splits may count alike, and a sum of values is no average."""
    report = check_attention(function, effort="quick", select=["mask-lowest-rows"], raises=False)
    assert report.passed == passes, str(report)


def test_shared_tensors_shrink_together() -> None:
    def wrong(q: Tensor, k: Tensor, v: Tensor, **flags: Any) -> Tensor:
        output: Tensor = einsum_attention(q, k, v, **flags)
        masked = flags.get("attn_mask") is not None
        return 2 * output if q is v and masked and q.shape[-2] > 2 else output

    report = check_attention(wrong, effort="default", select=["state-shared-inputs"], raises=False)
    failure = report.failures[0]
    assert "raised" not in failure.violated
    case = Case(**failure.case)
    assert (case.n_query, case.n_key, case.mask) == (3, 3, "bool")
    assert case.size == case.value_size


def in_base_two(q: Tensor, k: Tensor, v: Tensor, **flags: Any) -> Tensor:
    """Folds the logarithm into the scale, which a tensor of float32 rounds."""
    scale = flags.pop("scale", None)
    folded = (q.shape[-1] ** -0.5 if scale is None else scale) * math.log2(math.e)
    output: Tensor = einsum_attention(q * folded, k, v, scale=math.log(2), **flags)
    return output


def test_a_scale_in_float32_is_as_exact_as_that() -> None:
    check_attention(in_base_two, effort="quick", select=["scale-tensor", "scale-given"])
