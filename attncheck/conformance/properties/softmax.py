"""The arithmetic: large logits, one-hot limits, running maxima, accuracy in every dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from attncheck.conformance.bases import designed
from attncheck.conformance.case import Case
from attncheck.conformance.design import Plan
from attncheck.conformance.examine import agrees, check_form
from attncheck.conformance.kinds import CONTENTS
from attncheck.conformance.oracle import attend
from attncheck.conformance.registry import register
from attncheck.conformance.subject import Subject, Violation

register(
    "softmax-large-logits",
    "softmax",
    reason="logits of hundreds overflow exp unless the row's maximum is subtracted first",
    source="https://github.com/huggingface/transformers/pull/17437; Milakov, Gimelshein 2018",
    cases=designed(
        10, 50, 150, content=("huge", "large", "shifted"),
        scale=("default", "one", "given", "large"),
        n_query=(1, 5, 33), n_key=("same", 7, 40, 129), size=(8, 64, 128), causal=(False, True),
        mask=("none", "none", "bool", "float"), mask_shape=("qk",), pattern=("random", "large"),
        grad=(False, True),
    ),
)(agrees)  # fmt: skip

register(
    "softmax-running-maximum",
    "softmax",
    reason="when the maximum grows from block to block, what was summed so far must be rescaled",
    source="Dao et al. 2022 (FlashAttention), algorithm 1; Milakov, Gimelshein 2018, algorithm 3",
    cases=designed(
        12, 60, 200, content=("growing", "falling", "large"), n_query=(1, 3, 17, 65),
        n_key=("same", 17, 33, 65, 129, 257, 520, 1030), size=(8, 32), causal=(False, True),
        mask=("none", "bool", "float"), mask_shape=("qk", "11k"),
        pattern=("left padding", "padding", "one key", "holes"), grad=(False, True),
        scale=("default", "one", "negative"),
    ),
)(agrees)  # fmt: skip

register(
    "softmax-contents",
    "softmax",
    reason="equal, positive, shifted, one-sided numbers each show errors that normal ones hide",
    source="https://github.com/pytorch/pytorch/blob/main/test/test_transformers.py draws [0, 1)",
    cases=designed(
        14, 70, 220, content=tuple(CONTENTS), n_query=(1, 4, 33), n_key=("same", 9, 65, 150),
        size=(3, 8, 64), mask=("none", "bool", "float"), mask_shape=("qk", "b11k"),
        causal=(False, True), grad=(False, True),
    ),
)(agrees)  # fmt: skip


def accuracy_cases(plan: Plan) -> Sequence[Case]:
    """Return sums of many terms, where accumulating in half precision loses them."""
    return designed(
        10, 48, 150, content=("positive", "offset values", "zeros", "normal", "big values"),
        n_query=(1, 4, 40), n_key=(65, 300, 700, 2049, 3000), size=(8, 64, 256),
        value_size=("same", 64), mask=("none", "float"), mask_shape=("qk",),
        pattern=("random", "distance"), grad=(False, True),
    )(plan)  # fmt: skip


register(
    "accuracy-dtypes",
    "softmax",
    reason="float64 must be float64 throughout, and half precision must not accumulate in half",
    source="https://github.com/Dao-AILab/flash-attention/issues/613",
    cases=accuracy_cases,
)(agrees)

register(
    "accuracy-float64",
    "softmax",
    reason="float64 inputs ask for float64 arithmetic: no step may be in float32",
    source="torch.autograd.gradcheck needs it; transformers' eager softmax is float32 always",
    cases=lambda plan: [
        replace(case, dtype="float64")
        for case in designed(
            5, 20, 60, n_query=(1, 4, 33), n_key=("same", 9, 65), size=(8, 64),
            content=("normal", "large", "offset values"), mask=("none", "bool", "float"),
            mask_shape=("qk",), causal=(False, True), grad=(False, True),
        )(plan)
        if "float64" in (plan.accepted or plan.dtypes)
    ],
)(agrees)  # fmt: skip


@register(
    "accuracy-bias",
    "softmax",
    reason="rounding points both ways: an error along the output, or along the scale, is a mistake",
    source="least squares; flash-attention's hopper/test_flash_attn.py bounds the mean error too",
    cases=lambda plan: [
        Case(
            batch=2, kv_heads=4, n_query=64, n_key=n_key, size=64, value_size=64, dtype=dtype,
            content=content, seed=97 * plan.seed + n_key,
        )
        for n_key, content in (
            (64, "normal"), (200, "offset values"), (64, "positive"), (200, "normal"),
        )[: plan.pick(1, 3, 4)]
        if n_key == 64 or "rectangular" not in plan.refused
        for dtype in plan.dtypes
    ],
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
    mean = (weights * scores).sum(-1, keepdim=True)
    slope = (weights * (scores - mean)) @ inputs.value.double()
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
