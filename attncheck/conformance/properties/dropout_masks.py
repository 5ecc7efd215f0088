"""Dropout together with every kind, shape and layout of mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from attncheck.conformance.bases import designed
from attncheck.conformance.case import Case
from attncheck.conformance.design import MASK_SHAPES, Plan
from attncheck.conformance.examine import requiring_grad
from attncheck.conformance.kinds import MASK_LAYOUTS
from attncheck.conformance.numerics import Reference
from attncheck.conformance.properties.dropout import independent
from attncheck.conformance.registry import register
from attncheck.conformance.subject import Subject, Violation

RATE = 0.3


def mask_cases(plan: Plan) -> Sequence[Case]:
    """Return masked cases whose values may be one-hot: as many features as keys."""
    found = designed(
        12, 90, 250, mask=("bool", "float"), mask_shape=MASK_SHAPES,
        mask_layout=tuple(MASK_LAYOUTS), pattern=("random", "padding", "empty rows", "holes"),
        rank=(4, 4, 3), batch=(1, 2, 3), heads=((1, 1), (2, 1), (1, 2), (2, 2)),
        n_query=(1, 4, 16, 33), n_key=(8, 16, 40), grad=(False, True),
    )(plan)  # fmt: skip
    return [replace(case, size=case.n_key, value_size=case.n_key) for case in found]


@register(
    "dropout-masks",
    "dropout",
    reason="dropout takes weights that the mask has left: whatever its kind, shape and strides",
    source="no report; dropout often has a kernel of its own, with masks of its own",
    cases=mask_cases,
    script="""n = k.shape[-2]
eye = torch.eye(n, dtype=q.dtype).expand(*k.shape[:-1], n)
weights = attention(q, k, eye{flags})
got = attention(q, k, eye{flags}, dropout_p=0.3) * 0.7
error = torch.minimum(got.abs(), (got - weights).abs())
print(error.max())  # expected about 0: each weight is dropped or kept
assert error.max() < 1e-2""",
)
def dropout_masks(subject: Subject, case: Case) -> None:
    """Call with one-hot values: each output is 0, or the oracle's weight divided by 1 - p."""
    inputs = subject.build(case)
    eye = torch.eye(case.n_key, dtype=inputs.value.dtype, device=inputs.value.device)
    call = replace(inputs, value=eye.expand(*inputs.key.shape[:-2], -1, -1).contiguous())
    expected = Reference(call, subject.rules).values()["output"]
    asked = requiring_grad(call) if case.grad and "gradients" not in subject.refused else call
    torch.manual_seed(11)
    got = subject.call(asked, dropout_p=RATE).output.detach().double() * (1 - RATE)
    weights = expected.value
    rounding = 4 * torch.finfo(inputs.query.dtype).eps
    allowed = 1.5 * expected.allowed + rounding * weights
    dropped = got.abs() <= allowed
    kept = (got - weights).abs() <= allowed
    wrong = ~(dropped | kept)
    if bool(wrong.any()):
        hidden = int((wrong & (weights == 0)).sum())
        raise Violation(
            f"under dropout {int(wrong.sum())} of {wrong.numel()} weights are neither 0 nor "
            f"1 / (1 - p) times what the mask leaves, {hidden} of them at hidden keys",
        )
    clear = weights > 3 * allowed
    count = int(clear.sum())
    share = float(dropped[clear].double().mean()) if count else RATE
    if count >= 60 and abs(share - RATE) > 6 * (RATE * (1 - RATE) / count) ** 0.5:
        raise Violation(f"dropout_p={RATE} with a mask drops {share:.3f} of the weights")
    independent(got, clear, RATE)
