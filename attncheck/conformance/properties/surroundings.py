"""What surrounds a call: default dtype, autocast, memory that holds garbage, being the first."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from attncheck.conformance.bases import bases, designed
from attncheck.conformance.case import Case
from attncheck.conformance.design import Plan
from attncheck.conformance.examine import agrees_on, compare
from attncheck.conformance.numerics import expect
from attncheck.conformance.registry import register
from attncheck.conformance.subject import Crash, Refused, Subject, Violation


@register(
    "state-first-call",
    "state",
    reason="the first call of a process must be right, before anything is warm",
    source="caches and tables that the first call fills, and reads too early",
    cases=lambda _plan: [Case()],
)
def first_call(subject: Subject, _case: Case) -> None:
    """Judge the call that the probe made before all others."""
    if subject.first is None:
        return
    inputs, output = subject.first
    try:
        compare(output, expect(inputs, subject.rules)["output"], "output")
    except Violation as violation:
        if "float64" not in str(inputs.query.dtype):
            violation.message = f"the first call: {violation.message}"
            raise


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Compute with another default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@register(
    "state-default-dtype",
    "state",
    reason="the default dtype is for new tensors: an answer follows from the inputs alone",
    source="https://docs.pytorch.org/docs/stable/generated/torch.set_default_dtype.html; loading a "
    "model sets it",
    cases=bases(4, 24, 60, mask=("none", "bool", "float"), scale=("default", "given")),
    script="""torch.set_default_dtype(torch.float64)
got = {call}
torch.set_default_dtype(torch.float32)
print((got - {call}).abs().max())  # expected about 0
assert (got - {call}).abs().max() < 1e-2""",
)
def other_default_dtype(subject: Subject, case: Case) -> None:
    """Compare values with the oracle while the default dtype is float64.

    A mask or a bias of the default dtype may turn the output into it: that is not judged.
    """
    inputs = subject.build(case)
    expected = expect(inputs, subject.rules)["output"]
    with default_dtype(torch.float64):
        got = subject.call(inputs).output
    compare(got, expected, "output with default dtype float64", inputs)


@contextmanager
def garbage_in_new_memory() -> Iterator[None]:
    """Fill memory that torch hands out uninitialised with NaN."""
    before = torch.get_deterministic_debug_mode()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("warn")  # `use_deterministic_algorithms` imports a compiler
    memory.fill_uninitialized_memory = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_deterministic_debug_mode(before)
        memory.fill_uninitialized_memory = fill


@register(
    "state-uninitialised",
    "state",
    reason="memory that nobody wrote may hold NaN: each element of a buffer must be set",
    source="https://github.com/flashinfer-ai/flashinfer/issues/1046; "
    "https://github.com/fla-org/flash-linear-attention/pull/892",
    cases=designed(
        12, 70, 200, batch=(1, 2), heads=((1, 1), (2, 1), (1, 2)), n_query=(1, 3, 17, 65, 130),
        n_key=("same", 1, 5, 33, 70, 257), size=(3, 8, 17), mask=("none", "bool", "float"),
        mask_shape=("qk", "11k", "b11k", "bhqk"), pattern=("random", "empty rows", "padding"),
        causal=(False, True), grad=(False, True),
    ),
    script="""torch.use_deterministic_algorithms(True, warn_only=True)  # empty memory holds NaN
got = {call}
print(got.isnan().any())  # expected False
assert not got.isnan().any()""",
)  # fmt: skip
def uninitialised(subject: Subject, case: Case) -> None:
    """Compare with the oracle while new memory holds NaN."""
    if case.causal and case.mask != "none":
        case = replace(case, causal=False)
    inputs = subject.build(case)
    with garbage_in_new_memory():
        try:
            agrees_on(subject, inputs, case.grad)
        except Violation as violation:
            violation.message = f"with NaN in fresh memory: {violation.message}"
            raise


def autocast_cases(plan: Plan) -> Sequence[Case]:
    """Return ordinary float32 cases, if float32 and bfloat16 are supported."""
    if not {"float32", "bfloat16"} <= set(plan.dtypes):
        return []
    return bases(3, 10, 30, dtype=("float32",), mask=("none", "bool"), pattern=("random",))(plan)


@register(
    "state-autocast",
    "state",
    reason="under autocast products may be rounded to half precision, and nothing else may change",
    source="https://docs.pytorch.org/docs/stable/amp.html",
    cases=autocast_cases,
    script="""with torch.autocast("cpu", dtype=torch.bfloat16):
    got = {call}
print((got - {call}).abs().max())  # expected what rounding to bfloat16 does
assert (got - {call}).abs().max() < 0.1""",
)
def under_autocast(subject: Subject, case: Case) -> None:
    """Compare with what inputs rounded to bfloat16 may give, in whatever dtype the output is.

    An error is a refusal here: whoever allocates outputs has another dtype to fill.
    """
    inputs = subject.build(case)
    exact = expect(inputs, subject.rules)["output"]
    rounded = replace(inputs, query=inputs.query.bfloat16(), key=inputs.key.bfloat16(),
                      value=inputs.value.bfloat16())  # fmt: skip
    allowed = 3 * expect(rounded, subject.rules)["output"].allowed
    allowed = allowed + (expect(rounded, subject.rules)["output"].value - exact.value).abs().amax()
    with torch.autocast(inputs.query.device.type, dtype=torch.bfloat16):
        try:
            got = subject.call(inputs).output
        except Crash as crash:
            raise Refused(f"under autocast: {crash.message}") from crash
    compare(got.to(inputs.query.dtype), type(exact)(exact.value, allowed), "output under autocast")
