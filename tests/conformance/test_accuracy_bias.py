"""Systematic errors: found far below what one element may be off, with no alarm on right code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attncheck.conformance.case import Case
from attncheck.conformance.design import Plan
from attncheck.conformance.examine import agrees
from attncheck.conformance.registry import PROPERTIES
from attncheck.conformance.report import Outcome
from attncheck.conformance.run import run_property
from attncheck.conformance.subject import Subject
from tests.conformance.implementations import IMPLEMENTATIONS, einsum_attention

HALVES = ("float16", "bfloat16")


def judged(function: Callable[..., Any], *dtypes: str, seed: int = 0) -> Outcome:
    plan = Plan("default", seed, dtypes=dtypes)
    return run_property(PROPERTIES["accuracy-bias"], Subject(function), plan)


def off(scale: float = 1.0, output: float = 1.0) -> Callable[..., Tensor]:
    """Return attention that is right but for a factor, with one rounding at the end."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        got: Tensor = einsum_attention(
            q.to(wide), k.to(wide), v.to(wide), scale=scale * q.shape[-1] ** -0.5
        )
        return (output * got).to(q.dtype)

    return attention


@pytest.mark.parametrize(
    ("dtype", "error"),
    [("bfloat16", 0.005), ("float16", 0.0005), ("float32", 1e-5), ("float64", 1e-13)],
)
@pytest.mark.parametrize("what", ["scale", "output"])
def test_a_factor_is_found(dtype: str, error: float, what: str) -> None:
    for factor in (1 + error, 1 - error):
        outcome = judged(off(**{what: factor}), dtype)
        assert outcome.failure is not None, factor
        words = "scale of the scores" if what == "scale" else "the output"
        assert words in outcome.failure.violated
        assert f"is 1 {'+' if factor > 1 else '-'} " in outcome.failure.violated
        told = float(outcome.failure.violated.split(" times")[0].split()[-1])
        assert told == pytest.approx(error, rel=0.2)
        assert outcome.failure.severity > 1
        assert outcome.failure.case["batch"] > 1  # still enough outputs for roundings to cancel


def test_no_element_alone_would_show_it() -> None:
    """The element-wise rule lets these factors by: that is why the fit is there."""
    case = Case(batch=2, kv_heads=4, n_query=64, n_key=64, size=64, value_size=64)
    for dtype, factor in (("bfloat16", 1.005), ("float16", 1.0005)):
        agrees(Subject(off(scale=factor)), Case(**{**vars(case), "dtype": dtype}))


@pytest.mark.parametrize(
    "name", ["einsum", "torch default", "torch math", "tiled online softmax", "NumPy"]
)
def test_right_code_raises_no_alarm(name: str) -> None:
    entry = IMPLEMENTATIONS[name]
    dtypes = HALVES if name != "NumPy" else ("float32", "float64")
    for seed in range(4):
        outcome = judged(entry.function, *dtypes, seed=seed)
        assert outcome.status == "passed", str(outcome.failure)
        assert outcome.cases == 24
