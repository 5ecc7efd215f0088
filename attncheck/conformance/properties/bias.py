"""Systematic errors that hide in the rounding of half precision: a factor, fitted over many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from attncheck.conformance.case import Case
from attncheck.conformance.design import Plan
from attncheck.conformance.examine import (
    attached_output,
    check_form,
    differentiate,
    direction_of,
    requiring_grad,
)
from attncheck.conformance.numerics import gradients
from attncheck.conformance.oracle import attend
from attncheck.conformance.registry import register
from attncheck.conformance.subject import Subject, Violation


def bias_cases(plan: Plan) -> Sequence[Case]:
    """Return large inputs of every dtype: plain, and along each path a kernel may have."""
    base = Case(batch=2, kv_heads=4, n_query=64, n_key=64, size=64, value_size=64)
    variants = [
        base,
        replace(base, n_key=200, content="offset values"),
        replace(base, content="positive"),
        replace(base, causal=True, n_query=128, n_key=128, batch=1),
        replace(base, kv_heads=1, ratio=4).legal(),
        replace(base, mask="bool", mask_shape="b11k", pattern="padding"),
        replace(base, mask="float", mask_shape="1hqk"),
        replace(base, size=80, value_size=80, n_query=65, n_key=65),
        replace(base, n_query=1, batch=64, kv_heads=8, n_key=130),
        replace(base, n_query=17, batch=8, n_key=700),
        replace(base, n_key=200),
        replace(base, batch=1, kv_heads=1, n_query=512, n_key=9001),
    ]
    return [
        replace(plan.fit(case), dtype=dtype, seed=97 * plan.seed + number)
        for number, case in enumerate(variants[: plan.pick(1, 12, 12)])
        if not (case.n_key != case.n_query and "rectangular" in plan.refused)
        and not (case.ratio > 1 and "gqa" in plan.refused)
        and case.mask not in plan.refused
        and not (case.causal and "causal" in plan.refused)
        for dtype in plan.dtypes
    ]


@register(
    "accuracy-bias",
    "softmax",
    reason="rounding points both ways: an error along the output, or along the scale, is a mistake",
    source="least squares; flash-attention's hopper/test_flash_attn.py bounds the mean error too",
    cases=bias_cases,
    script="""s = q.double() @ k.double().mT * q.shape[-1] ** -0.5
want = s.softmax(-1) @ v.double()
error = {call} - want
print((error * want).sum() / (want * want).sum())  # expected about 0
assert ((error * want).sum() / (want * want).sum()).abs() < torch.finfo(q.dtype).eps""",
)  # fmt: skip
def accuracy_bias(subject: Subject, case: Case) -> None:
    """Fit the error by a factor of the output and by a factor of the scale.

    Over 32,768 outputs, rounding to half precision was seen to leave at most 1/9 eps of either.
    """
    inputs = subject.build(case)
    result = subject.call(inputs)
    check_form(result, inputs)
    exact, weights, scores = attend(inputs, torch.float64, subject.rules)
    if exact.numel() < 30_000:
        return  # too few for roundings to cancel
    mean = (weights * scores.masked_fill(weights == 0, 0)).sum(-1, keepdim=True)
    value = inputs.value.double()
    if case.ratio > 1:
        value = value.repeat_interleave(case.ratio, -3)
    slope = (weights * (scores.masked_fill(weights == 0, 0) - mean)) @ value
    error = result.output.detach().double() - exact
    eps = torch.finfo(inputs.query.dtype).eps
    allowed = eps / 4 if eps > 1e-4 else 8 * eps
    wrong = []
    for name, direction in (("output", exact), ("scale of the scores", slope)):
        size = float(direction.square().sum())
        found = float((error * direction).sum()) / size if size else 0.0
        if not abs(found) <= allowed:
            wrong.append((abs(found) * size**0.5, name, found))
    if wrong:
        _, name, found = max(wrong)  # the two may be alike: the one that explains more
        raise Violation(
            f"the {name} is 1 {'-' if found < 0 else '+'} {abs(found):.2g} times what it "
            f"should be, allowed 1 +- {allowed:.2g}",
            severity=abs(found) / allowed,
        )


@register(
    "accuracy-bias-gradient",
    "gradient",
    reason="a gradient that is too large by a little, always, is a mistake and no rounding",
    source="least squares, as accuracy-bias",
    cases=lambda plan: [
        replace(case, grad=True)
        for case in bias_cases(plan)
        if "gradients" not in plan.refused and case.n_key < 5000
    ],
    script="""leaves = [x.requires_grad_() for x in (q, k, v)]
d = torch.randn(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
got = torch.autograd.grad({call}, leaves, d)
exact = [x.detach().double().requires_grad_() for x in leaves]
s = exact[0] @ exact[1].mT * q.shape[-1] ** -0.5
want = torch.autograd.grad(s.softmax(-1) @ exact[2], exact, d.double())
ratios = [((g - w) * w).sum() / (w * w).sum() for g, w in zip(got, want)]
print(ratios)  # expected about 0
assert all(ratio.abs() < torch.finfo(q.dtype).eps for ratio in ratios)""",
)
def gradient_bias(subject: Subject, case: Case) -> None:
    """Fit the error of each gradient by a factor of the right one."""
    asked = requiring_grad(subject.build(case))
    output = attached_output(subject, asked)
    direction = direction_of(output)
    leaves: dict[str, Tensor] = {n: t for n, t in asked.tensors.items() if t.requires_grad}
    found = differentiate(output, leaves, direction)
    eps = torch.finfo(asked.query.dtype).eps
    allowed = eps / 4 if eps > 1e-4 else 8 * eps
    for name, right in gradients(asked, direction, subject.rules).items():
        grad, size = found[name], float(right.square().sum())
        if grad is None or right.numel() < 8000 or not size:
            continue  # absent ones and small ones are judged element by element
        factor = float(((grad.double() - right) * right).sum()) / size
        if not abs(factor) <= allowed:
            raise Violation(
                f"the gradient of {name} is 1 {'-' if factor < 0 else '+'} {abs(factor):.2g} "
                f"times what it should be, allowed 1 +- {allowed:.2g}",
                severity=abs(factor) / allowed,
            )
