"""Dropout: off means off; on, it zeroes weights, rescales the rest, and follows the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attncheck.conformance.case import Case, Inputs
from attncheck.conformance.design import Plan
from attncheck.conformance.examine import differentiate, direction_of, requiring_grad
from attncheck.conformance.oracle import attend
from attncheck.conformance.registry import register
from attncheck.conformance.subject import Subject, Violation

SOURCE = "Srivastava et al. 2014; https://github.com/pytorch/pytorch/issues/124464"
SEEDED = "Srivastava et al. 2014; https://docs.pytorch.org/docs/stable/notes/randomness.html"


def dropout_cases(plan: Plan) -> Sequence[Case]:
    """Return a few cases with enough weights for statistics."""
    base = Case(
        batch=2, kv_heads=3, n_query=24, n_key=32, size=8, value_size=8, dtype=plan.dtypes[0]
    )
    half = [dtype for dtype in plan.dtypes if "16" in dtype]
    variants = [
        (base, ""),
        (replace(base, dtype=(half or plan.dtypes)[-1]), ""),
        (replace(base, mask="float", mask_shape="qk"), "float"),
        (replace(base, causal=True), "causal"),
        (replace(base, mask="bool", mask_shape="b11k", pattern="padding"), "bool"),
        (replace(base, kv_heads=2, ratio=2).legal(), "gqa"),
        (replace(base, n_query=65, n_key=70, scale="given"), "scale"),
        (replace(base, n_query=1, n_key=160), "rectangular"),
        (replace(base, rank=3, n_query=40).legal(), "rank3"),
        (replace(base, value_size=5, causal=True, kv_heads=1, ratio=3).legal(), "gqa"),
        (replace(base, n_query=140, n_key=150, size=17, value_size=17), "rectangular"),
        (replace(base, batch=9, n_query=5, n_key=40, layout="heads last"), "strided"),
        (replace(base, grad=True), "gradients"),
    ]
    kept = [case for case, need in variants if need not in plan.refused]
    return [plan.fit(case) for case in kept[: plan.pick(4, 13, 13)]]


def gradient_cases(plan: Plan) -> Sequence[Case]:
    """Return the same cases, some once more in float64, where a small step says enough."""
    found = dropout_cases(plan)
    exact = [case for case in found if "16" not in case.dtype][: plan.pick(1, 6, 12)]
    if "float64" not in plan.dtypes:
        return found
    return [*found, *(replace(case, dtype="float64") for case in exact)]


def dropped(
    subject: Subject, inputs: Inputs, p: float, seed: int, grad: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Call with one-hot values, so that the output is the weights after dropout.

    Returns:
        What came, the oracle's weights, and the share of visible weights that are zero.
    """
    n_key = inputs.key.shape[-2]
    eye = torch.eye(n_key, dtype=inputs.value.dtype, device=inputs.value.device)
    value = eye.expand(*inputs.key.shape[:-2], n_key, n_key).contiguous()
    call = replace(inputs, value=value)
    torch.manual_seed(seed)
    asked = requiring_grad(call) if grad else call
    got = subject.call(asked, dropout_p=p).output.detach().double()
    weights = attend(call, torch.float64, subject.rules)[1]
    visible = weights > 1e-3
    zeros = (got.abs() < 1e-9)[visible].double().mean()
    return got, weights, zeros


@register(
    "dropout-weights",
    "dropout",
    reason="each weight is dropped alone with probability p, and the rest divided by 1 - p",
    source=SOURCE,
    cases=dropout_cases,
    script="""n = k.shape[-2]
got = attention(q, k, torch.eye(n, dtype=q.dtype).expand(*k.shape[:-1], n){flags}, dropout_p=0.3)
print((got == 0).double().mean(), got.sum(-1).mean())  # more than 0.3 zeros; mean about 1
assert (got == 0).double().mean() > 0.2""",
)
def dropout_on_weights(subject: Subject, case: Case) -> None:
    """Count zeros, compare what is left with the weights, look at where the zeros are."""
    inputs = subject.build(case)
    for p in (0.1, 0.25, 0.5, 0.8):
        got, weights, zeros = dropped(subject, inputs, p, seed=5, grad=case.grad)
        visible = weights > 1e-3
        count = int(visible.sum())
        if count < 60:
            return  # too few for statistics
        spread = 6 * (p * (1 - p) / count) ** 0.5
        if abs(float(zeros) - p) > spread:
            raise Violation(
                f"dropout_p={p} zeroes {float(zeros):.3f} of the weights, "
                f"expected {p} +- {spread:.3f}"
            )
        kept = visible & (got.abs() >= 1e-9)
        ratio = (got[kept] / weights[kept]) * (1 - p)
        slack = 40 * torch.finfo(inputs.query.dtype).eps
        if not bool(((ratio - 1).abs() <= slack).all()):
            raise Violation(
                f"weights kept under dropout_p={p} are {float(ratio.mean() / (1 - p)):.4f} times "
                f"the weights, expected 1 / (1 - p) = {1 / (1 - p):.4f}",
                severity=float((ratio - 1).abs().max() / slack),
            )
        independent(got, visible, p)


def independent(got: Tensor, visible: Tensor, p: float) -> None:
    """Raise if batches, heads, queries or keys, near or some way apart, lose the same weights."""
    lost = (got.abs() < 1e-9) & visible
    chance = p * p + (1 - p) * (1 - p)
    for axis, name in ((-4, "batches"), (-3, "heads"), (-2, "queries"), (-1, "keys")):
        for apart in (1, 2, 3, 4, 8, 16, 32, 64, 128):
            if got.dim() < -axis or got.shape[axis] <= apart:
                break
            rest = got.shape[axis] - apart
            first, second = (lost.narrow(axis, i, rest) for i in (0, apart))
            both = visible.narrow(axis, 0, rest) & visible.narrow(axis, apart, rest)
            count = int(both.sum())
            if count < 60:
                continue
            same = float((first == second)[both].double().mean())
            if same - chance > 6 * (chance * (1 - chance) / count) ** 0.5 + 0.05:
                raise Violation(
                    f"{name} that are {apart} apart lose the same weights "
                    f"(alike {same:.2f}, chance {chance:.2f})"
                )


@register(
    "dropout-not-on-output",
    "dropout",
    reason="dropout belongs to the weights: features of one output share them",
    source="Vaswani et al. 2017, 5.4; "
    "https://github.com/nikhilbarhate99/min-decision-transformer/issues/2",
    cases=dropout_cases,
    script="""v[:] = v[..., :1]  # all features alike
torch.manual_seed(5)
got = attention(q, k, v{flags}, dropout_p=0.5)
print((got - got[..., :1]).abs().max())  # expected about 0
assert (got - got[..., :1]).abs().max() < 1e-2""",
)
def dropout_not_on_output(subject: Subject, case: Case) -> None:
    """Call with values whose features are all alike: so must the outputs' be."""
    inputs = subject.build(case)
    value = inputs.value[..., :1].expand(inputs.value.shape).contiguous()
    torch.manual_seed(5)
    got = subject.call(replace(inputs, value=value), dropout_p=0.5).output.detach().double()
    spread = (got - got[..., :1]).abs().amax()
    if float(spread) > 40 * torch.finfo(inputs.query.dtype).eps * float(got.abs().amax() + 1):
        raise Violation("dropout hits features of the output apart: it is not on the weights")


@register(
    "dropout-expectation",
    "dropout",
    reason="on average dropout changes nothing",
    source=SOURCE,
    cases=lambda plan: dropout_cases(plan)[: plan.pick(1, 3, 5)],
    script="""mean = sum(attention(q, k, v{flags}, dropout_p=0.4) for _ in range(400)) / 400
print((mean - {call}).abs().mean())  # expected near 0
assert (mean - {call}).abs().mean() < 0.1""",
)
def dropout_expectation(subject: Subject, case: Case) -> None:
    """Average many calls and compare with the call without, against its standard error."""
    inputs = subject.build(case)
    exact = attend(inputs, torch.float64, subject.rules)[0]
    torch.manual_seed(3)
    calls = [subject.call(inputs, dropout_p=0.4).output.detach().double() for _ in range(150)]
    stacked = torch.stack(calls)
    error = (stacked.mean(0) - exact) / (stacked.std(0) / len(calls) ** 0.5 + 1e-9)
    if not float(error.abs().mean()) < 1.3:  # about 0.8 for a standard normal
        raise Violation(f"dropout is biased: mean error {float(error.abs().mean()):.2f} sigmas")


@register(
    "dropout-off",
    "dropout",
    reason="dropout_p=0 is no dropout, whatever was called before",
    source="https://github.com/huggingface/pytorch-image-models/pull/1978",
    cases=lambda plan: dropout_cases(plan),
    script="""attention(q, k, v{flags}, dropout_p=0.5)
error = attention(q, k, v{flags}, dropout_p=0.0) - {call}
print(error.abs().max())  # expected 0
assert error.abs().max() < 1e-3""",
)
def dropout_off(subject: Subject, case: Case) -> None:
    """Call with dropout, then without, with and without gradients."""
    inputs = subject.build(case)
    subject.call(inputs, dropout_p=0.5)
    want = attend(inputs, torch.float64, subject.rules)[0]
    slack = 100 * torch.finfo(inputs.query.dtype).eps
    asking = replace(inputs, query=inputs.query.detach().requires_grad_())
    for call in (inputs, inputs) if "gradients" in subject.refused else (inputs, asking):
        for flags in ({}, {"dropout_p": 0.0}):
            got = subject.call(call, **flags).output.detach().double()
            if not bool(((got - want).abs() <= slack).all()):
                raise Violation("with dropout_p=0 something is dropped, or rescaled", inputs=inputs)


@register(
    "dropout-seeded",
    "dropout",
    reason="the same seed drops the same weights; the next call and the next seed drop others",
    source=SEEDED,
    cases=dropout_cases,
    script="""def run(seed):
    torch.manual_seed(seed)
    return attention(q, k, v{flags}, dropout_p=0.5)
print(torch.equal(run(1), run(1)), torch.equal(run(1), run(2)))  # expected True, False
assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))""",
)
def dropout_seeded(subject: Subject, case: Case) -> None:
    """Call with the same seed, another seed, and twice without seeding between."""
    inputs = subject.build(case)

    def run(seed: int | None) -> Tensor:
        if seed is not None:
            torch.manual_seed(seed)
        return subject.call(inputs, dropout_p=0.5).output.detach()

    first, again, other, following = run(1), run(1), run(2), run(None)
    if not torch.allclose(first, again, atol=1e-3):
        raise Violation("the same seed drops different weights")
    if torch.equal(first, other):
        raise Violation("different seeds drop the same weights")
    if torch.equal(other, following):
        raise Violation("the next call drops the same weights again")
    if torch.initial_seed() != 2:
        raise Violation("the call seeds the caller's random numbers anew")


@register(
    "dropout-everything",
    "dropout",
    reason="dropout_p=1 drops every weight: zeros, not 0/0",
    source=SOURCE,
    cases=lambda plan: dropout_cases(plan)[:2],
    script="""got = attention(q, k, v{flags}, dropout_p=1.0)
print(got.abs().max())  # expected 0
assert (got == 0).all()""",
)
def dropout_everything(subject: Subject, case: Case) -> None:
    """Call with dropout_p=1."""
    got = subject.call(subject.build(case), dropout_p=1.0).output
    if not bool((got == 0).all()):
        raise Violation("dropout_p=1 leaves something, or NaN")


@register(
    "dropout-gradient",
    "dropout",
    reason="the backward pass must drop the weights that the forward pass dropped",
    source="Dao et al. 2022 (FlashAttention), algorithm 4: the random state is kept for it",
    cases=gradient_cases,
    script="""def f(q, k, v): torch.manual_seed(9); return attention(q, k, v{flags}, dropout_p=0.5)
for x in (q, k, v): x.requires_grad_()
got = f(q, k, v)
got.sum().backward()
print((v.grad * v).sum() - got.sum())  # expected about 0: the output is linear in v
assert ((v.grad * v).sum() - got.sum()).abs() < 1e-2 * (1 + got.abs().sum())
assert q.dtype != torch.float64 or torch.autograd.gradcheck(f, (q, k, v))""",
)
def dropout_gradient(subject: Subject, case: Case) -> None:
    """Use that the output is linear in the values; check query and key by a small step."""
    inputs = subject.build(case)
    if "gradients" in subject.refused:
        return
    asked = requiring_grad(inputs)
    torch.manual_seed(9)
    output = subject.call(asked, dropout_p=0.5).output
    if not output.requires_grad:
        return
    direction = direction_of(output)
    leaves = {"value": asked.value, "query": asked.query, "key": asked.key}
    grads = differentiate(output, leaves, direction)
    value = grads["value"]
    predicted = 0.0 if value is None else float((value * asked.value).detach().double().sum())
    actual = float((output * direction).detach().double().sum())
    size = float((output * direction).detach().double().abs().sum())
    if abs(predicted - actual) > 60 * torch.finfo(inputs.query.dtype).eps * (1 + size):
        raise Violation("the gradient of value does not match the weights that were dropped")
    if inputs.query.dtype == torch.float64:
        for name in ("query", "key"):
            _predicts(subject, inputs, name, grads[name], direction)


def _predicts(
    subject: Subject, inputs: Inputs, name: str, grad: Tensor | None, direction: Tensor
) -> None:
    """Compare a gradient with what a small step does, the same weights dropped (float64)."""
    leaf = inputs.tensors[name].detach()
    generator = torch.Generator().manual_seed(17)
    step = torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf.device)
    moved = []
    for sign in (1e-5, -1e-5):
        torch.manual_seed(9)
        changed: dict[str, Any] = {name: leaf + sign * step}
        output = subject.call(replace(inputs, **changed), dropout_p=0.5).output.detach()
        moved.append(output * direction)
    actual = float((moved[0] - moved[1]).sum()) / 2e-5
    predicted = 0.0 if grad is None else float((grad * step).sum())
    # Rounding of the outputs, over the step, and what a third derivative adds.
    size = float(moved[0].abs().sum())
    if not abs(predicted - actual) <= 1e-6 * (1 + abs(actual) + size):
        raise Violation(
            f"the gradient of {name} does not match the weights that were dropped: it predicts "
            f"{predicted:.6g} for a step that does {actual:.6g}"
        )
