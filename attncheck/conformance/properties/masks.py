"""Masks: every shape, both kinds, rows that see nothing, numbers behind the mask."""

from __future__ import annotations

from dataclasses import replace

import torch

from attncheck.conformance.bases import bases, designed
from attncheck.conformance.case import Case
from attncheck.conformance.design import MASK_SHAPES, RARE_PATTERNS
from attncheck.conformance.examine import agrees, compare
from attncheck.conformance.kinds import BOOL_PATTERNS, FLOAT_PATTERNS, MASK_LAYOUTS
from attncheck.conformance.numerics import expect
from attncheck.conformance.registry import register
from attncheck.conformance.subject import Subject, Violation

DOCUMENTED = (
    "https://docs.pytorch.org/docs/stable/generated/"
    "torch.nn.functional.scaled_dot_product_attention.html"
)
SHAPES = {
    "batch": (1, 2, 3),
    "heads": ((1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (1, 3)),
    "n_query": (1, 2, 5, 17, 33),
    "n_key": ("same", 1, 3, 18, 34),
    "mask_shape": MASK_SHAPES,
    "rank": (4, 4, 3, 5, 2),
    "mask_layout": tuple(MASK_LAYOUTS),
    "grad": (False, True),
}
ORDINARY_BOOL = tuple(name for name in BOOL_PATTERNS if name not in RARE_PATTERNS)
ORDINARY_FLOAT = tuple(name for name in FLOAT_PATTERNS if name not in RARE_PATTERNS)

register(
    "mask-bool",
    "mask",
    reason="True means taking part, in every shape that broadcasts, with every layout",
    source=f"{DOCUMENTED}; https://github.com/pytorch/pytorch/issues/112577",
    cases=designed(50, 300, 900, mask=("bool",), pattern=ORDINARY_BOOL, **SHAPES),
)(agrees)

register(
    "mask-float",
    "mask",
    reason="a float mask is added to the scaled scores, in every shape that broadcasts",
    source=f"{DOCUMENTED}; https://github.com/pytorch/pytorch/issues/191937",
    cases=designed(50, 300, 900, mask=("float",), pattern=ORDINARY_FLOAT, **SHAPES),
)(agrees)

register(
    "mask-empty-rows-bool",
    "mask",
    reason="a query that may see no key gives zeros, and finite gradients, not NaN or a mean",
    source="https://github.com/pytorch/pytorch/issues/103749, .../103963",
    cases=designed(
        10, 40, 120, mask=("bool",), pattern=("none", "empty rows"),
        mask_shape=("qk", "1k", "q1", "11", "b11k", "bhqk", "b1q1", "1h11"), grad=(False, True),
        batch=(1, 3), heads=((2, 1), (1, 2)), n_query=(1, 4, 33), n_key=("same", 1, 6, 40, 513),
    ),
)(agrees)  # fmt: skip

register(
    "mask-empty-rows-float",
    "mask",
    reason="a row of -inf hides every key: zeros, and finite gradients",
    source="https://github.com/pytorch/pytorch/issues/109517",
    cases=designed(
        10, 40, 120, mask=("float",), pattern=("empty rows", "holes", "all hidden"),
        mask_shape=("qk", "q1", "b1q1", "bhqk", "b11k", "1k", "11"), grad=(False, True),
        batch=(1, 3), heads=((2, 1), (1, 2)), n_query=(1, 4, 33), n_key=("same", 1, 6, 40, 513),
    ),
)(agrees)  # fmt: skip


@register(
    "mask-kinds-agree",
    "mask",
    reason="a boolean mask and its float twin (0 and -inf) are the same mask",
    source=DOCUMENTED,
    cases=bases(6, 24, 80, mask=("bool",), causal=(False,), pattern=("random", "empty rows")),
    script="""twin = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -torch.inf)
error = attention(q, k, v, attn_mask=mask{more}) - attention(q, k, v, attn_mask=twin{more})
print(error.abs().max())  # expected about 0
assert error.abs().max() < 1e-2""",
)
def mask_kinds_agree(subject: Subject, case: Case) -> None:
    """Call with the float twin and compare with the oracle of the boolean mask."""
    inputs = subject.build(case)
    if inputs.mask is None:
        return
    twin = torch.zeros(inputs.mask.shape, dtype=inputs.query.dtype).masked_fill(
        ~inputs.mask.cpu(), -torch.inf
    )
    got = subject.call(replace(inputs, mask=twin.to(inputs.query.device)))
    compare(got.output, expect(inputs, subject.rules)["output"], "output", inputs)


@register(
    "mask-hidden-numbers",
    "mask",
    reason="what stands behind a mask, however large, must not reach the output",
    source="https://github.com/pytorch/pytorch/issues/101967",
    cases=bases(
        8, 40, 120, mask=("bool", "float"), pattern=("padding", "left padding"),
        mask_shape=("1k", "11k", "b11k"), causal=(False,),
    ),
    script="""hidden = ~mask if mask.dtype == torch.bool else mask == -torch.inf
hidden = hidden.reshape(-1, k.shape[-2]).all(0)[:, None]
k2, v2 = k.masked_fill(hidden, 900), v.masked_fill(hidden, 900)
error = attention(q, k2, v2, attn_mask=mask{more}) - attention(q, k, v, attn_mask=mask{more})
print(error.abs().max())  # expected about 0
assert error.abs().max() < 1e-2""",
)  # fmt: skip
def mask_hidden_numbers(subject: Subject, case: Case) -> None:
    """Put large numbers where no query looks and compare with the oracle without them."""
    inputs = subject.build(case)
    expected = expect(inputs, subject.rules)
    if inputs.mask is None:
        return
    hidden = ~inputs.mask if inputs.mask.dtype == torch.bool else inputs.mask == -torch.inf
    hidden = hidden.reshape(-1, case.n_key).all(0)[:, None]
    filled = replace(
        inputs,
        key=inputs.key.masked_fill(hidden, 900.0),
        value=inputs.value.masked_fill(hidden, 900.0),
    )
    compare(subject.call(filled).output, expected["output"], "output", inputs)


@register(
    "mask-cut",
    "mask",
    reason="hiding the last keys is the same as leaving them out",
    source="Vaswani et al. 2017, 3.2.3; padding must not change a sentence's output",
    cases=bases(8, 32, 100, mask=("none",), n_key=(5, 18, 34, 66, 130), causal=(False,)),
    script="""seen = torch.arange(k.shape[-2]) < k.shape[-2] - 2
error = attention(q, k, v, attn_mask=seen[None]{more}) - attention(
    q, k[..., :-2, :], v[..., :-2, :]{more})
print(error.abs().max())  # expected about 0
assert error.abs().max() < 1e-2""",
)
def mask_cut(subject: Subject, case: Case) -> None:
    """Hide the last two keys, with a mask of one row, and compare with the oracle of the rest."""
    inputs = subject.build(case)
    seen = torch.arange(case.n_key, device=inputs.query.device) < max(case.n_key - 2, 1)
    cut = replace(
        inputs,
        key=inputs.key[..., : int(seen.sum()), :],
        value=inputs.value[..., : int(seen.sum()), :],
    )
    got = subject.call(replace(inputs, mask=seen[None]))
    compare(
        got.output, expect(cut, subject.rules)["output"], "output", replace(inputs, mask=seen[None])
    )


@register(
    "mask-with-causal",
    "mask",
    reason="torch documents that both raise; whoever accepts both must apply both",
    source=DOCUMENTED,
    cases=lambda plan: [
        replace(case, causal=True, mask=kind, pattern="random")
        for kind in ("bool", "float")
        for case in designed(
            6, 80, 200, mask=("bool",), mask_shape=MASK_SHAPES,
            batch=(1, 2), heads=((1, 1), (3, 1), (1, 2), (2, 2)), grad=(False, True),
            n_query=(1, 4, 17, 64, 65), n_key=("same", 3, 33, 65),
        )(plan)
        if kind not in plan.refused
        and not plan.refused & {"mask_with_causal", "causal"}
    ],
)  # fmt: skip
def mask_with_causal(subject: Subject, case: Case) -> None:
    """Compare with the oracle, where the implementation accepts both."""
    agrees(subject, case)


@register(
    "mask-nan-query",
    "mask",
    reason="NaN in one query stays in its row: NaN there, or zeros, and no other row touched",
    source="IEEE 754; torch's fused CPU kernel gives zeros, its math backend NaN",
    cases=bases(4, 12, 40, mask=("none",), causal=(False,), dtype=("float32",)),
    script="""q[..., 0, 0] = torch.nan  # the first query of each head
got = attention(q, k, v{more})
print(got[..., 1:, :].isnan().any(), got[..., 0, :])  # expected False; NaN or zeros
assert not got[..., 1:, :].isnan().any() and not got[..., 0, :].nan_to_num(0).any()""",
)
def mask_nan_query(subject: Subject, case: Case) -> None:
    """Put NaN into the first query of each head."""
    inputs = subject.build(case)
    query = inputs.query.clone()
    query[..., 0, 0] = torch.nan
    found = subject.call(replace(inputs, query=query)).output
    if bool(found[..., 1:, :].isnan().any()):
        raise Violation("NaN in one query reaches the output of another")
    if bool(found[..., 0, :].nan_to_num(0.0).any()):
        raise Violation("a query of NaN gives numbers")


@register(
    "mask-nan-value",
    "mask",
    reason="NaN in a visible value must show in every row that sees it",
    source="IEEE 754: a result made from NaN is NaN",
    cases=bases(4, 12, 40, mask=("none",), causal=(False,), dtype=("float32",)),
    script="""v[..., 0, 0] = torch.nan
seen = attention(q, k, v{more}).isnan()
print(seen[..., 0].all())  # expected True
assert seen[..., 0].all()""",
)
def mask_nan_value(subject: Subject, case: Case) -> None:
    """Put NaN into the first feature of the first value."""
    inputs = subject.build(case)
    value = inputs.value.clone()
    value[..., 0, 0] = torch.nan
    found = subject.call(replace(inputs, value=value)).output.isnan()
    if not bool(found[..., 0].all()):
        raise Violation("NaN in a value does not show in the output: it is silently replaced")


@register(
    "mask-inf-value",
    "mask",
    reason="inf in a visible value must show: inf, or NaN, and not a large number",
    source="IEEE 754: a sum with inf is no finite number",
    cases=bases(4, 12, 40, mask=("none",), causal=(False,), dtype=("float32", "bfloat16")),
    script="""v[..., 0, 0] = torch.inf
got = attention(q, k, v{more})
print(got[..., 0].isfinite().any())  # expected False
assert not got[..., 0].isfinite().any()""",
)
def mask_inf_value(subject: Subject, case: Case) -> None:
    """Put inf into the first feature of the first value."""
    inputs = subject.build(case)
    value = inputs.value.clone()
    value[..., 0, 0] = torch.inf
    found = subject.call(replace(inputs, value=value)).output
    if bool(found[..., 0].isfinite().any()):
        raise Violation("inf in a value does not show in the output: it is silently replaced")
