"""The arithmetic: large logits, one-hot limits, running maxima, accuracy in every dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from attncheck.conformance.bases import designed
from attncheck.conformance.case import Case
from attncheck.conformance.design import Plan
from attncheck.conformance.examine import agrees
from attncheck.conformance.kinds import USUAL_CONTENTS
from attncheck.conformance.registry import register

register(
    "softmax-large-logits",
    "softmax",
    reason="logits of hundreds overflow exp unless the row's maximum is subtracted first",
    source="https://github.com/pytorch/executorch/pull/18407; Milakov, Gimelshein 2018",
    cases=designed(
        10, 50, 150, content=("huge", "large", "shifted"),
        scale=("default", "one", "given", "large"),
        n_query=(1, 5, 33), n_key=("same", 7, 40, 129), size=(8, 64, 128), causal=(False, True),
        mask=("none", "none", "bool", "float"), mask_shape=("qk",), pattern=("random", "large"),
        grad=(False, True),
    ),
)(agrees)  # fmt: skip

register(
    "softmax-extreme-logits",
    "softmax",
    reason="logits may be of any size and sign: nothing may be clamped, no maximum starts at 0",
    source="Milakov and Gimelshein 2018: the maximum starts at -inf",
    cases=designed(
        8, 40, 120, content=("enormous", "sunken"), dtype=("float32", "float64"),
        scale=("default", "one", "given"), n_query=(1, 5, 33), n_key=("same", 1, 2, 7, 40, 129),
        size=(4, 8, 64), causal=(False, True), heads=((1, 1), (1, 2)),
        mask=("none", "none", "bool", "float"), mask_shape=("qk", "11k"),
        pattern=("random", "padding", "left padding"), grad=(False, True),
    ),
)(agrees)  # fmt: skip

register(
    "softmax-many-alike",
    "softmax",
    reason="a thousand values of 100 sum to more than half precision holds: divide, or sum wider",
    source="https://github.com/Dao-AILab/flash-attention: the output is accumulated in float32",
    cases=designed(
        5, 16, 40, content=("alike",), n_query=(1, 5, 33), n_key=(1100, 2049), size=(8, 64),
        heads=((1, 1), (2, 1), (1, 2)),
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
        14, 70, 220, content=USUAL_CONTENTS, n_query=(1, 4, 33), n_key=("same", 9, 65, 150),
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
    source="https://github.com/zhuzilin/ring-flash-attention/issues/22",
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
