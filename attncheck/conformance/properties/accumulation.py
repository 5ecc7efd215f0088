"""Sums of many terms in the backward pass, which half precision must hold in something wider."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from attncheck.conformance.case import Case
from attncheck.conformance.design import Plan
from attncheck.conformance.examine import (
    attached_output,
    differentiate,
    direction_of,
    requiring_grad,
)
from attncheck.conformance.numerics import HALF, Reference
from attncheck.conformance.registry import register
from attncheck.conformance.subject import Subject, Violation

MANY = 900
"""Terms of a sum."""

TIMES = 2.0
"""How many times the error of a reference of the same dtype is accepted, root mean square; correct
kernels were seen to make half of it at most, and sums in half precision four times as much."""


def many_terms(plan: Plan) -> Sequence[Case]:
    """Return few keys for many queries, whose gradients are long sums, and the other way round."""
    base = Case(batch=1, kv_heads=2, n_query=MANY, n_key=4, size=64, value_size=64)
    variants = [base, replace(base, n_query=4, n_key=MANY)]
    return [
        replace(plan.fit(case), dtype=dtype, grad=True, seed=31 * plan.seed + number)
        for number, case in enumerate(variants)
        for dtype in plan.dtypes
        if "16" in dtype and not {"gradients", "rectangular"} & set(plan.refused)
    ]


@register(
    "gradient-accumulation",
    "gradient",
    reason="a gradient that sums over many queries or keys is summed in more than half precision",
    source="https://github.com/Dao-AILab/flash-attention: dK and dV are accumulated in float32",
    cases=many_terms,
    script="""leaves = [x.requires_grad_() for x in (q, k, v)]
d = torch.randn(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
got = torch.autograd.grad({call}, leaves, d)
exact = [x.detach().double().requires_grad_() for x in leaves]
s = exact[0] @ exact[1].mT * q.shape[-1] ** -0.5
want = torch.autograd.grad(s.softmax(-1) @ exact[2], exact, d.double())
errors = [((g - w).square().mean() / w.square().mean()).sqrt() for g, w in zip(got, want)]
print(errors)  # expected about eps or less
assert all(error < 2 * torch.finfo(q.dtype).eps for error in errors)""",
)
def gradient_accumulation(subject: Subject, case: Case) -> None:
    """Compare the error, root mean square, with that of a reference that sums in float32."""
    asked = requiring_grad(subject.build(case))
    if asked.query.dtype not in HALF:
        return
    output = attached_output(subject, asked)
    direction = direction_of(output)
    leaves: dict[str, Tensor] = {n: t for n, t in asked.tensors.items() if t.requires_grad}
    found = differentiate(output, leaves, direction)
    reference, eps = Reference(asked, subject.rules, grad=True), torch.finfo(asked.query.dtype).eps
    native = reference.native.gradients(direction)
    for name, right in reference.exact.gradients(direction).items():
        grad = found[name]
        if grad is None or right.numel() < 200:
            continue  # absent ones and small ones are judged element by element
        error = _size(grad.double() - right)
        allowed = TIMES * max(_size(native[name].double() - right), eps * _size(right))
        if not error <= allowed:
            raise Violation(
                f"the gradient of {name} is off by {error:.2g}, root mean square, allowed "
                f"{allowed:.2g}: a long sum that is held in half precision errs so",
                severity=error / allowed,
            )


def _size(numbers: Tensor) -> float:
    """Root mean square."""
    return float(numbers.square().mean().sqrt())
