"""What an average of values obeys: shifts of logits, the hull, constants, linearity."""

from __future__ import annotations

from dataclasses import replace

import torch

from attncheck.conformance.bases import bases
from attncheck.conformance.case import Case
from attncheck.conformance.examine import compare
from attncheck.conformance.numerics import Expected, expect, logit_size
from attncheck.conformance.oracle import attend
from attncheck.conformance.properties.relations import close
from attncheck.conformance.registry import register
from attncheck.conformance.subject import Subject, Violation


@register(
    "relation-logit-shift",
    "relation",
    reason="a constant added to all logits of a row changes nothing: softmax is invariant",
    source="Milakov and Gimelshein 2018, Online normalizer calculation for softmax",
    cases=bases(6, 24, 80, mask=("float",), mask_shape=("qk",), causal=(False,),
                pattern=("random", "holes"), dtype=("float32", "float64")),
    script="""error = attention(q, k, v, attn_mask=mask + 50{more}) - {call}
print(error.abs().max())  # expected about 0
assert error.abs().max() < 1e-2""",
)  # fmt: skip
def logit_shift(subject: Subject, case: Case) -> None:
    """Add a constant to every row of a float mask: 50, -50, and one that differs by row."""
    inputs = subject.build(case)
    if inputs.mask is None or inputs.mask.dtype == torch.bool:
        return
    rows = torch.linspace(-90, 90, case.n_query, dtype=inputs.mask.dtype)[:, None]
    for shift in (torch.tensor(100.0), torch.tensor(-100.0), rows):
        shifted = replace(inputs, mask=inputs.mask + shift.to(inputs.mask))
        expected = expect(shifted, subject.rules)["output"]
        got = subject.call(shifted).output
        close(got, expect(inputs, subject.rules)["output"].value, expected,
              "a constant added to the logits of a row changes its output")  # fmt: skip


@register(
    "relation-hull",
    "relation",
    reason="an output is an average of values: it stays between the smallest and the largest",
    source="softmax weights are at least 0 and sum to 1",
    cases=bases(8, 40, 120, content=("normal", "large", "huge", "offset values", "growing"),
                n_key=("same", 5, 33, 65, 300)),
    script="""got = {call}
print(got.max() - v.max(), v.min() - got.min())  # expected at most about 0
assert got.max() <= v.max() + 0.1 and got.min() >= min(v.min(), 0) - 0.1""",
)  # fmt: skip
def hull(subject: Subject, case: Case) -> None:
    """Compare with the extremes over all keys, with a little for rounding; 0 for empty rows."""
    inputs = subject.build(case)
    got = subject.call(inputs).output.double()
    value = inputs.value.double()
    if case.ratio > 1:
        value = value.repeat_interleave(case.ratio, -3)
    slack = 8 * torch.finfo(inputs.query.dtype).eps * value.abs().amax()
    high = value.amax(-2, keepdim=True).clamp_min(0) + slack
    low = value.amin(-2, keepdim=True).clamp_max(0) - slack
    outside = ~((got <= high) & (got >= low))
    if bool(outside.any()):
        raise Violation(
            f"{int(outside.sum())} of {outside.numel()} outputs lie outside the values",
            inputs=inputs,
            got=got,
        )


@register(
    "relation-constant-values",
    "relation",
    reason="equal values come out unchanged, whatever the weights: they sum to 1",
    source="row-stochastic weights; sums in half precision stall at 256 or 2,048 equal terms",
    cases=bases(8, 40, 120, mask=("none",), n_key=("same", 9, 33, 300, 2049, 4100),
                n_query=(4, 17), content=("normal", "zeros", "positive", "large", "growing"),
                batch=(1,), heads=((1, 1), (1, 2))),
    script="""v[:] = 0.7
got = {call}
print((got - 0.7).abs().max())  # expected about 0
assert (got - 0.7).abs().max() < 0.01""",
)  # fmt: skip
def constant_values(subject: Subject, case: Case) -> None:
    """Call with values that are all 0.7; the output must be 0.7 to a few roundings."""
    inputs = subject.build(case)
    value = torch.full_like(inputs.value, 0.7)
    constant = replace(inputs, value=value)
    got = subject.call(constant).output
    eps = torch.finfo(inputs.query.dtype).eps
    # Weights rounded to half precision need not sum to 1 closer than their own rounding.
    expected = expect(constant, subject.rules)["output"]
    logits = logit_size(constant, attend(constant, torch.float64, subject.rules)[2])
    most = 4 if eps > 1e-4 else 12 + case.n_key / 4 + logits  # what rounds a row's log-sum
    allowed = torch.minimum(expected.allowed, torch.as_tensor(most * eps).to(expected.allowed))
    compare(got, Expected(torch.full_like(expected.value, float(value.flatten()[0])), allowed),
            "output", constant)  # fmt: skip


@register(
    "relation-linear-values",
    "relation",
    reason="the output is linear in the values: scaled and added values give the same outputs",
    source="output = weights @ value",
    cases=bases(4, 20, 60, dtype=("float32", "float64")),
    script="""error = attention(q, k, 3 * v + 1{flags}) - 3 * {call} - 1
print(error.abs().max())  # expected about 0
assert error.abs().max() < 1e-2""",
)
def linear_values(subject: Subject, case: Case) -> None:
    """Call with a million times the values, a thousandth, and minus one time."""
    inputs = subject.build(case)
    for factor in (1e6, 1e-3, -1.0):
        scaled = replace(inputs, value=inputs.value * factor)
        compare(subject.call(scaled).output, expect(scaled, subject.rules)["output"], "output",
                scaled)  # fmt: skip
