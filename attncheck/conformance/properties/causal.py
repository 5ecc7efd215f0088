"""Causality and the grouping of heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from attncheck.conformance.bases import bases, designed
from attncheck.conformance.case import Case
from attncheck.conformance.design import Plan
from attncheck.conformance.examine import agrees, compare
from attncheck.conformance.numerics import Expected, expect
from attncheck.conformance.registry import register
from attncheck.conformance.subject import Subject, Violation

DOCUMENTED = (
    "https://docs.pytorch.org/docs/stable/generated/"
    "torch.nn.functional.scaled_dot_product_attention.html"
)

register(
    "causal-square",
    "causal",
    reason="query i sees the keys 0 to i, itself included",
    source="Vaswani et al. 2017, 3.2.3",
    cases=lambda plan: [
        replace(case, causal=True)
        for case in designed(
            10, 45, 150, n_query=(1, 2, 3, 8, 16, 17, 33, 64, 65, 100, 128, 129),
            heads=((1, 1), (2, 1), (1, 2), (3, 1)), batch=(1, 2), size=(8, 17),
            content=("normal", "large", "growing", "falling"), grad=(False, True),
            layout=("contiguous", "heads last"),
        )(plan)
        for case in [replace(case, n_key=case.n_query)]
        if "causal" not in plan.refused
    ],
)(agrees)  # fmt: skip

register(
    "causal-rectangular",
    "causal",
    reason="with unequal lengths the diagonal starts at the top left, for L < S, L > S and L = 1",
    source=f"{DOCUMENTED}; https://github.com/Dao-AILab/flash-attention/issues/517",
    cases=lambda plan: [
        replace(case, causal=True)
        for case in designed(
            16, 80, 250, n_query=(1, 2, 3, 15, 17, 33, 64, 65, 129),
            n_key=(1, 2, 5, 16, 31, 64, 66, 130), heads=((1, 1), (2, 1), (1, 2), (3, 1), (1, 4)),
            batch=(1, 2), grad=(False, True), layout=("contiguous", "heads last", "columns"),
        )(plan)
        if not plan.refused & {"causal", "rectangular"}
    ],
)(agrees)  # fmt: skip


@register(
    "causal-no-leak",
    "causal",
    reason="a key or value after the query must not change its output by one bit that matters",
    source="https://github.com/facebookresearch/xformers/issues/103; a leak inflates every metric",
    cases=bases(
        6, 30, 100, mask=("none",), causal=(True,), n_query=(4, 17, 40, 65, 130),
        content=("normal", "large"),
    ),
    script="""t = k.shape[-2] // 2  # change keys and values from t on
k2, v2 = k.clone(), v.clone()
k2[..., t:, :], v2[..., t:, :] = 30, -70
error = (attention(q, k2, v2{more}) - attention(q, k, v{more}))[..., :t, :]
print(error.abs().max())  # expected about 0
assert error.abs().max() < 1e-2""",
)  # fmt: skip
def causal_no_leak(subject: Subject, case: Case) -> None:
    """Change the later half of keys and values; earlier queries must stay."""
    if not case.causal:
        return
    inputs = subject.build(case)
    turn = max(case.n_key // 2, 1)
    key, value = inputs.key.clone(), inputs.value.clone()
    key[..., turn:, :], value[..., turn:, :] = 30.0, -70.0
    expected = expect(inputs, subject.rules)["output"]
    got = subject.call(replace(inputs, key=key, value=value)).output
    early = Expected(
        expected.value[..., :turn, :], expected.allowed.expand_as(expected.value)[..., :turn, :]
    )
    try:
        compare(got[..., :turn, :], early, "output")
    except Violation as violation:
        violation.message = f"keys from {turn} on change the output of queries before {turn}"
        raise


def long_halves(plan: Plan) -> Sequence[Case]:
    """Return sequences longer than the dtype can count; that of float16 takes a while."""
    lengths = {"bfloat16": 301} | ({} if plan.effort == "quick" else {"float16": 2053})
    base = Case(size=8, value_size=8, causal="causal" not in plan.refused, seed=plan.seed)
    return [
        replace(base, dtype=dtype, n_query=n, n_key=n)
        for dtype, n in lengths.items()
        if dtype in plan.dtypes and base.causal
    ]


@register(
    "causal-positions",
    "causal",
    reason="positions are counted in integers: bfloat16 has no 257, float16 no 2049",
    source="positions made with arange in the dtype of the model; no report of a causal mask",
    cases=long_halves,
    script="""t = k.shape[-2] - 2  # change the last two keys and values
k2, v2 = k.clone(), v.clone()
k2[..., t:, :], v2[..., t:, :] = 30, -70
error = (attention(q, k2, v2{more}) - attention(q, k, v{more}))[..., :t, :]
print(error.abs().max())  # expected about 0
assert error.abs().max() < 1e-2""",
)
def causal_positions(subject: Subject, case: Case) -> None:
    """Change the last keys and values, one and two of them; earlier queries must stay."""
    inputs = subject.build(case)
    before = subject.call(inputs).output.double()
    allowed = 16 * torch.finfo(inputs.query.dtype).eps * float(inputs.value.abs().max())
    for turn in (case.n_key - 2, case.n_key - 1):
        key, value = inputs.key.clone(), inputs.value.clone()
        key[..., turn:, :], value[..., turn:, :] = 30.0, -70.0
        after = subject.call(replace(inputs, key=key, value=value)).output.double()
        error = float((after - before)[..., :turn, :].abs().max())
        if not error <= allowed:
            raise Violation(
                f"keys from {turn} on change the output of queries before {turn} by {error:.2g}",
                severity=error / allowed,
            )


@register(
    "causal-prefix",
    "causal",
    reason="a prefix gives what the whole sequence gives at those positions",
    source="the reason why a key-value cache works; Vaswani et al. 2017, 3.2.3",
    cases=bases(4, 20, 60, mask=("none",), causal=(True,), n_query=(5, 18, 66), n_key=("same",)),
    script="""t = q.shape[-2] - 2
part = attention(q[..., :t, :], k[..., :t, :], v[..., :t, :]{more})
error = attention(q, k, v{more})[..., :t, :] - part
print(error.abs().max())  # expected about 0
assert error.abs().max() < 1e-2""",
)
def causal_prefix(subject: Subject, case: Case) -> None:
    """Leave out the last two positions."""
    if not case.causal:
        return
    inputs = subject.build(case)
    cut = max(case.n_query - 2, 1)
    part = replace(
        inputs,
        query=inputs.query[..., :cut, :],
        key=inputs.key[..., :cut, :],
        value=inputs.value[..., :cut, :],
    )
    expected = expect(inputs, subject.rules)["output"]
    allowed = expected.allowed.expand_as(expected.value)[..., :cut, :]
    compare(
        subject.call(part).output,
        Expected(expected.value[..., :cut, :], allowed),
        "output",
        part,
    )


register(
    "gqa-ratios",
    "gqa",
    reason="query head h reads key-value head h // ratio: neighbours share, not strangers",
    source="Ainslie et al. 2023 (GQA), fig. 2; https://github.com/onnx/onnx/pull/7274",
    cases=lambda plan: [
        replace(case, gqa=True)
        for case in designed(
            24, 130, 400,
            heads=((1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (3, 2), (1, 3), (2, 3), (3, 3), (1, 4),
                   (2, 4), (5, 4), (1, 8), (2, 8), (4, 8), (1, 7), (7, 2), (2, 5), (2, 6), (2, 7),
                   (2, 12), (2, 16), (3, 32)),
            batch=(1, 2, 3), n_query=(1, 4, 17, 65), n_key=("same", 3, 33),
            mask=("none", "bool", "float"), mask_shape=("qk", "1hqk", "bhqk", "1h1k", "b11k"),
            pattern=("random", "padding"), causal=(False, True), rank=(4, 4, 3, 5),
            layout=("contiguous", "heads last", "expanded heads", "every second row", "columns"),
            layout_on=("qkv", "k", "v", "kv", "q"), grad=(False, True), scale=("default", "given"),
            value_size=("same", 5),
        )(plan)
        if case.rank > 2 and "gqa" not in plan.refused
    ],
)(agrees)  # fmt: skip


@register(
    "gqa-expanded",
    "gqa",
    reason="grouped heads equal heads repeated one after the other by hand",
    source="https://github.com/EricLBuehler/candle-vllm/pull/52",
    cases=lambda plan: [
        case
        for case in bases(6, 20, 60, heads=((2, 2), (2, 3), (3, 4)), grad=(False,))(plan)
        if "gqa" not in plan.refused
    ],
    script="""n = q.shape[-3] // k.shape[-3]
k2, v2 = k.repeat_interleave(n, -3), v.repeat_interleave(n, -3)
error = {call} - attention(q, k2, v2{flags})
print(error.abs().max())  # expected about 0
assert error.abs().max() < 1e-2""",
)
def gqa_expanded(subject: Subject, case: Case) -> None:
    """Repeat the heads by hand, as an expanded view, and drop the flag."""
    inputs = subject.build(case)
    expected = expect(inputs, subject.rules)["output"]
    heads = inputs.query.shape[-3]
    key, value = (
        x.unsqueeze(-3)
        .expand(*x.shape[:-2], case.ratio, *x.shape[-2:])
        .reshape(*x.shape[:-3], heads, *x.shape[-2:])
        for x in (inputs.key, inputs.value)
    )
    flags = {name: flag for name, flag in inputs.flags.items() if name != "enable_gqa"}
    repeated = replace(inputs, key=key, value=value, flags=flags)
    compare(subject.call(repeated).output, expected, "output", repeated)
    compare(subject.call(inputs).output, expected, "output", inputs)
    assert isinstance(key, torch.Tensor)
