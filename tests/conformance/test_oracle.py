"""The oracle and the error rule against plain loops and against torch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from attncheck.conformance.case import Case, Inputs
from attncheck.conformance.design import MASK_SHAPES
from attncheck.conformance.numerics import Expected, expect, expect_gradients, worst
from attncheck.conformance.oracle import Rules, attend


def by_loops(case: Case) -> list[list[float]]:
    """Attention of a 2-D case, in Python floats."""
    inputs = case.build()
    q, k, v = (x.double().tolist() for x in (inputs.query, inputs.key, inputs.value))
    mask = None if inputs.mask is None else inputs.mask.expand(len(q), len(k)).tolist()
    scale = inputs.flags.get("scale")
    scale = 1 / math.sqrt(len(q[0])) if scale is None else float(scale)
    rows = []
    for i, query in enumerate(q):
        seen = []
        for j, key in enumerate(k):
            score = scale * sum(a * b for a, b in zip(query, key, strict=True))
            if case.causal and j > i:
                continue
            if case.mask == "bool" and mask is not None and not mask[i][j]:
                continue
            if case.mask == "float" and mask is not None:
                score += mask[i][j]
            if score > -math.inf:
                seen.append((j, score))
        peak = max((score for _, score in seen), default=0.0)
        total = sum(math.exp(score - peak) for _, score in seen)
        rows.append([
            sum(math.exp(s - peak) / total * v[j][d] for j, s in seen) for d in range(len(v[0]))
        ])  # fmt: skip
    return rows


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", ["none", "bool", "float"])
@pytest.mark.parametrize("scale", ["default", "given", "zero", "negative", "tensor"])
def test_oracle_is_attention(mask: str, causal: bool, scale: str) -> None:
    for lengths in ((3, 3), (1, 4), (5, 2)):
        case = Case(
            rank=2, n_query=lengths[0], n_key=lengths[1], mask=mask, causal=causal, scale=scale,
            pattern="empty rows", dtype="float64",
        )  # fmt: skip
        output = attend(case.build())[0]
        torch.testing.assert_close(output, torch.tensor(by_loops(case), dtype=torch.float64))


@pytest.mark.parametrize("shape", MASK_SHAPES)
def test_masks_broadcast_as_in_torch(shape: str) -> None:
    case = Case(
        batch=2, kv_heads=3, n_query=4, n_key=5, mask="float", mask_shape=shape, dtype="float64"
    )
    inputs = case.build()
    want = F.scaled_dot_product_attention(inputs.query, inputs.key, inputs.value, inputs.mask)
    torch.testing.assert_close(attend(inputs)[0], want)


def test_grouped_heads_are_neighbours() -> None:
    inputs = Case(kv_heads=2, ratio=3, n_query=2, n_key=4).legal().build()
    output = attend(inputs)[0]
    for head in range(6):
        alone = attend(
            type(inputs)(
                inputs.query[:, head : head + 1],
                inputs.key[:, head // 3 : head // 3 + 1],
                inputs.value[:, head // 3 : head // 3 + 1],
                None,
                {},
            )
        )[0]
        torch.testing.assert_close(output[:, head : head + 1], alone)


def test_rules_of_extensions() -> None:
    inputs = Case(n_query=3, n_key=5, dtype="float64").build()
    weights = attend(inputs, rules=Rules(window=(1, 0)))[1][0, 0]
    assert (weights > 0).int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0]]
    weights = attend(inputs, rules=Rules(align="bottom-right", causal=True))[1][0, 0]
    assert (weights > 0).int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    weights = attend(inputs, rules=Rules(sinks=lambda heads: torch.full((heads,), 50.0)))[1]
    assert weights.sum() < 1e-10


def test_the_rule_grants_little_and_scales_with_logits() -> None:
    easy = expect(Case(n_query=8, n_key=8, size=16, value_size=16).build())["output"]
    hard = expect(Case(n_query=8, n_key=8, size=16, value_size=16, content="large").build())
    assert float(easy.allowed.max()) < 2e-5
    assert float(easy.allowed.max()) < float(hard["output"].allowed.max()) < 5e-4
    wide = expect(Case(n_query=8, n_key=8, dtype="float64").build())["output"]
    assert float(wide.allowed.max()) < 1e-12


def test_worst_names_the_element_and_nan_counts_as_infinitely_wrong() -> None:
    expected = Expected(torch.zeros(2, 3, dtype=torch.float64), torch.full((2, 3), 0.1))
    assert worst(torch.full((2, 3), 0.05), expected) is None
    got = torch.zeros(2, 3)
    got[1, 2] = 0.5
    found = worst(got, expected)
    assert found is not None
    assert found.index == (1, 2)
    assert found.count == 1
    assert found.ratio == pytest.approx(5)
    got[0, 0] = torch.nan
    found = worst(got, expected)
    assert found is not None
    assert found.index == (0, 0)
    assert found.ratio == math.inf


def test_gradients_of_the_oracle_are_those_of_torch() -> None:
    case = Case(
        batch=2, kv_heads=2, ratio=2, n_query=3, n_key=5, mask="float", mask_shape="b11k",
        dtype="float64", grad=True,
    ).legal()  # fmt: skip
    inputs = case.build()
    direction = torch.randn(2, 4, 3, 8, dtype=torch.float64)
    found = expect_gradients(inputs, direction)
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.tensors.items()}
    output = F.scaled_dot_product_attention(
        inputs.query, inputs.key, inputs.value, inputs.mask, enable_gqa=True
    )
    grads = torch.autograd.grad(output, list(leaves.values()), direction)
    for name, grad in zip(leaves, grads, strict=True):
        torch.testing.assert_close(found[name].value, grad)
        assert worst(grad * 1.001, found[name]) is not None


def test_weights_far_below_their_row_keep_the_digits_of_their_own_logit() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(n, 256, generator=generator, dtype=torch.float64) for n in (4, 1400, 1400)
    )
    mask = -0.5 * torch.arange(1399, -1, -1, dtype=torch.float64).expand(4, 1400).clone()
    inputs = Inputs(query, key, value, mask, {})
    direction = torch.ones(4, 256, dtype=torch.float64)
    found = expect_gradients(inputs, direction)["value"]
    scores = mask.clone()  # as torch.baddbmm may: every term is rounded beside the mask's size
    for q, k in zip((query / 16).unbind(-1), key.unbind(-1), strict=True):
        scores += q[:, None] * k
    gradient = scores.softmax(-1).mT @ direction
    assert worst(gradient, found) is None
    far = gradient.clone()
    far[100] *= 1 + 1e-9
    assert worst(far, found) is not None
    near = gradient.clone()
    near[1390] *= 1 + 1e-12
    assert worst(near, found) is not None
