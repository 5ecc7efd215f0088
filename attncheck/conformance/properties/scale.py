"""The scale of the scores."""

from __future__ import annotations

from attncheck.conformance.bases import designed
from attncheck.conformance.design import SIZES
from attncheck.conformance.examine import agrees
from attncheck.conformance.registry import register

DOCUMENTED = (
    "https://docs.pytorch.org/docs/stable/generated/"
    "torch.nn.functional.scaled_dot_product_attention.html"
)
MIXED = {
    "mask": ("none", "bool", "float"),
    "mask_shape": ("qk", "b11k"),
    "heads": ((1, 1), (2, 2)),
    "n_query": (1, 5, 33),
    "n_key": ("same", 7, 40),
    "grad": (False, True),
}

register(
    "scale-default",
    "scale",
    reason="the default is 1/sqrt of the head size of query and key, also where that is padded",
    source="Vaswani et al. 2017, eq. 1; https://github.com/intel/ipex-llm/pull/12619",
    cases=designed(
        22, 66, 200, size=(*SIZES, 2, 5, 7, 24, 40, 48, 72, 100, 112, 129, 160, 192, 255, 320),
        value_size=("same", 4, 65), causal=(False, True),
    ),
)(agrees)  # fmt: skip

register(
    "scale-given",
    "scale",
    reason="a given scale replaces the default, for every mask and in the gradient",
    source=DOCUMENTED,
    cases=designed(
        16, 60, 200, scale=("given", "one", "large", "small", "integer"), causal=(False, True),
        size=(1, 8, 17, 64), content=("normal", "large"), **MIXED,
    ),
)(agrees)  # fmt: skip

register(
    "scale-tensor",
    "scale",
    reason="a scale that is a 0-d tensor counts as its number",
    source=DOCUMENTED,
    cases=designed(
        4,
        20,
        40,
        scale=("tensor", "double tensor"),
        causal=(False, True),
        size=(8, 64),
        **MIXED,
    ),
)(agrees)

register(
    "scale-zero",
    "scale",
    reason="0 is a scale, not a missing one: every visible key counts the same",
    source=DOCUMENTED,
    cases=designed(6, 24, 60, scale=("zero",), size=(8, 64), **MIXED),
)(agrees)

register(
    "scale-negative",
    "scale",
    reason="a negative scale turns the order of the keys around, so the maximum is the minimum",
    source=DOCUMENTED,
    cases=designed(
        8, 30, 80, scale=("negative",), size=(8, 64), content=("normal", "large", "huge"), **MIXED
    ),
)(agrees)
