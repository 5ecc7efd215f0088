"""Returned weights: those that were used, per query head, after the mask, before dropout."""

from __future__ import annotations

from dataclasses import replace

import torch

from attncheck.conformance.bases import bases, designed
from attncheck.conformance.case import Case
from attncheck.conformance.examine import agrees, check_values, compare
from attncheck.conformance.numerics import Expected, expect, logit_size
from attncheck.conformance.oracle import attend
from attncheck.conformance.registry import register
from attncheck.conformance.subject import Subject, Violation

MIXED = {
    "batch": (1, 2, 3),
    "heads": ((1, 1), (2, 1), (3, 1), (1, 2), (2, 3)),
    "n_query": (1, 4, 17, 65),
    "n_key": ("same", 1, 6, 33),
    "mask": ("none", "bool", "float"),
    "mask_shape": ("qk", "b11k", "bhqk", "1h1k", "b1q1"),
    "pattern": ("random", "padding", "empty rows", "holes"),
    "causal": (False, True),
    "scale": ("default", "given"),
}

register(
    "weights-values",
    "weights",
    reason="weights are those of the oracle: per query head, after the mask, zero where hidden",
    source="Jain and Wallace 2019 read them; https://github.com/pytorch/pytorch/issues/160064",
    tags=("weights",),
    cases=designed(16, 90, 300, rank=(4, 4, 3, 2, 5), layout=("contiguous", "heads last"), **MIXED),
)(agrees)


@register(
    "weights-rows",
    "weights",
    reason="rows of weights are not negative and sum to 1, or to 0 where a query sees nothing",
    source="Vaswani et al. 2017, eq. 1",
    tags=("weights",),
    cases=designed(8, 40, 120, content=("normal", "large", "huge", "zeros"), **MIXED),
    script="""w = {call}[1].double()
print(w.sum(-1).min(), w.sum(-1).max(), w.min())  # expected 1 (0 for empty rows), 1, at least 0
assert w.min() >= 0 and (((w.sum(-1) - 1).abs() < 0.02) | (w.sum(-1) == 0)).all()""",
)
def rows_sum_to_one(subject: Subject, case: Case) -> None:
    """Sum rows in float64."""
    inputs = subject.build(case)
    weights = subject.call(inputs).weights
    assert weights is not None
    sums = weights.detach().double().sum(-1)
    exact = expect(inputs, subject.rules)["weights"].value.sum(-1)
    logits = logit_size(inputs, attend(inputs, torch.float64, subject.rules)[2]).squeeze(-1)
    slack = (12 + logits) * torch.finfo(inputs.query.dtype).eps
    if bool((weights < 0).any()):
        raise Violation("weights are negative")
    if not bool(((sums - exact).abs() <= slack).all()):
        worst = float((sums - exact).abs().max())
        ratio = float(((sums - exact).abs() / slack).max())
        raise Violation(f"rows of weights miss their sum by {worst:.3g}", severity=ratio)


@register(
    "weights-used",
    "weights",
    reason="the weights returned are the weights used: weights @ value is the output",
    source="a recomputed softmax sums to 1 and proves nothing",
    tags=("weights",),
    cases=designed(8, 40, 120, content=("normal", "large"), **MIXED),
    script="""out, w = {call}
n = q.shape[-3] // k.shape[-3]
error = w @ v.repeat_interleave(n, -3) - out
print(error.abs().max())  # expected about 0
assert error.abs().max() < 1e-2""",
)
def weights_are_used(subject: Subject, case: Case) -> None:
    """Multiply the returned weights with the values."""
    inputs = subject.build(case)
    result = subject.call(inputs)
    assert result.weights is not None
    value = inputs.value.double()
    if case.ratio > 1:
        value = value.repeat_interleave(case.ratio, -3)
    product = result.weights.detach().double() @ value
    expected = expect(inputs, subject.rules)
    allowed = 2 * expected["output"].allowed + (expected["weights"].allowed @ value.abs())
    compare(result.output, Expected(product, allowed), "output", None)


@register(
    "weights-before-dropout",
    "weights",
    reason="weights are reported before dropout: rows still sum to 1",
    source="https://github.com/huggingface/transformers returns them after dropout; probabilities",
    tags=("weights",),
    cases=bases(2, 6, 15, causal=(False,), n_query=(17,), n_key=("same", 33)),
    script="""w = attention(q, k, v{flags}, dropout_p=0.5)[1]
print((w - {call}[1]).abs().max())  # expected about 0
assert (w - {call}[1]).abs().max() < 1e-2""",
)
def weights_before_dropout(subject: Subject, case: Case) -> None:
    """Call with dropout and compare the weights with the oracle's."""
    inputs = subject.build(case)
    weights = subject.call(inputs, dropout_p=0.5).weights
    assert weights is not None
    compare(weights, expect(inputs, subject.rules)["weights"], "weights under dropout", None)


@register(
    "weights-same-output",
    "weights",
    reason="weights are not views of a buffer that the next call overwrites",
    source="a function of its arguments",
    tags=("weights",),
    cases=bases(2, 6, 15),
    script="""w = {call}[1]
before = w.clone()
attention(q + 1, k, v{flags})
print(torch.equal(before, w))  # expected True
assert torch.equal(before, w)""",
)
def weights_kept(subject: Subject, case: Case) -> None:
    """Call again with other inputs; the first weights must stay, and the second be right."""
    inputs = subject.build(case)
    first = subject.call(inputs)
    assert first.weights is not None
    kept = first.weights.detach().clone()
    other = subject.build(replace(case, seed=case.seed + 1))
    check_values(subject.call(other), expect(other, subject.rules), other)
    if not torch.equal(first.weights.detach(), kept):
        raise Violation("a later call changes the weights of an earlier one")
