"""Gradients: against the oracle's autograd, and against finite differences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from attncheck.conformance.bases import bases, designed
from attncheck.conformance.case import Case
from attncheck.conformance.examine import (
    agrees,
    attached_output,
    compare,
    differentiate,
    direction_of,
    requiring_grad,
)
from attncheck.conformance.kinds import LAYOUTS, USUAL_CONTENTS
from attncheck.conformance.numerics import Expected, Reference
from attncheck.conformance.registry import register
from attncheck.conformance.subject import Subject, Violation

THREE = ("query", "key", "value")

register(
    "gradient-values",
    "gradient",
    reason="gradients of query, key, value and float mask are those of the oracle",
    source="Dao et al. 2022 (FlashAttention), appendix B.2; issue 103963 for rows without keys",
    cases=designed(
        30, 170, 500, grad=(True,), batch=(1, 2, 3), heads=((1, 1), (2, 1), (1, 2), (2, 3), (3, 1)),
        n_query=(1, 2, 5, 17, 33, 65), n_key=("same", 1, 4, 18, 66), size=(1, 3, 8, 17, 64),
        value_size=("same", 5), mask=("none", "bool", "float"),
        mask_shape=("qk", "1k", "q1", "11", "b11k", "bhqk", "1h1k", "1hqk", "b1q1", "h1k"),
        pattern=("random", "padding", "empty rows", "holes", "large"), causal=(False, True),
        scale=("default", "given", "one", "tensor"), content=USUAL_CONTENTS,
        layout=tuple(LAYOUTS), layout_on=("qkv", "q", "k", "v"), rank=(4, 4, 3, 5),
    ),
)(agrees)  # fmt: skip

register(
    "gradient-long",
    "gradient",
    reason="the backward pass has block loops of its own",
    source="https://github.com/triton-lang/triton/issues/5660",
    cases=designed(
        5, 24, 80, grad=(True,), n_query=(1, 31, 33, 127, 129, 257, 513), heads=((1, 1), (1, 2)),
        n_key=("same", 15, 63, 65, 128, 255, 511), size=(8, 32), mask=("none", "bool", "float"),
        mask_shape=("qk", "11k"), causal=(False, True),
    ),
)(agrees)  # fmt: skip


@register(
    "gradient-finite-differences",
    "gradient",
    reason="a gradient must predict what a small step does to the output (float64)",
    source="torch.autograd.gradcheck",
    cases=lambda plan: [
        case
        for case in bases(3, 12, 40, n_query=(1, 3, 5), n_key=("same", 4), size=(3, 8),
                          batch=(1, 2), heads=((1, 1), (1, 2)), dtype=("float64",),
                          grad=(True,))(plan)
        if "gradients" not in plan.refused and "float64" in plan.dtypes
    ],
    script="""for x in (q, k, v): x.requires_grad_()
assert torch.autograd.gradcheck(lambda q, k, v: {call}, (q, k, v))""",
)  # fmt: skip
def finite_differences(subject: Subject, case: Case) -> None:
    """Compare directional derivatives with central differences."""
    if case.dtype != "float64":
        return  # differences of a small step drown in its rounding
    asked = requiring_grad(subject.build(case))
    output = attached_output(subject, asked)
    direction = direction_of(output)
    leaves = {name: t for name, t in asked.tensors.items() if t.requires_grad}
    grads = differentiate(output, leaves, direction)
    generator = torch.Generator().manual_seed(case.seed)
    for name, leaf in leaves.items():
        finite = leaf.detach().isfinite()
        step = torch.randn(leaf.shape, generator=generator, dtype=torch.float64) * finite.cpu()
        step = step.to(leaf.device)
        values = []
        for sign in (1e-5, -1e-5):
            moved = torch.where(finite, leaf.detach() + sign * step, leaf.detach())
            field = "mask" if name == "attn_mask" else name
            inputs = subject.build(case)
            call = type(inputs)(**{**inputs.__dict__, field: moved})
            values.append(float((subject.call(call).output.detach() * direction).sum()))
        numeric = (values[0] - values[1]) / 2e-5
        grad = grads[name]
        predicted = float((grad * step).sum()) if grad is not None else 0.0
        if not abs(numeric - predicted) <= 1e-6 * (1 + abs(numeric) + float(step.norm())):
            raise Violation(
                f"gradient of {name} predicts {predicted:.8g} for a step that does {numeric:.8g}",
                severity=abs(numeric - predicted) / 1e-6,
            )


@register(
    "gradient-partial",
    "gradient",
    reason="only some inputs may ask for a gradient: a frozen key, a trained value",
    source="fine-tuning freezes some projections",
    cases=bases(4, 18, 60, mask=("none", "bool", "float"), n_query=(4, 17), grad=(True,)),
    script="""v.requires_grad_()
got = {call}
got.sum().backward()
print(v.grad.sum(), got.numel())  # expected about equal
assert v.grad is not None""",
)
def partial_gradients(subject: Subject, case: Case) -> None:
    """Ask for the gradient of one input at a time and compare with that of all at once."""
    everything = requiring_grad(subject.build(case))
    output = attached_output(subject, everything)
    direction = direction_of(output)
    leaves = {name: t for name, t in everything.tensors.items() if t.requires_grad}
    together = differentiate(output, leaves, direction)
    for name in leaves:
        field = "mask" if name == "attn_mask" else name
        plain = subject.build(case)
        leaf = plain.tensors[name].detach().requires_grad_()
        alone = subject.call(type(plain)(**{**plain.__dict__, field: leaf})).output
        if not alone.requires_grad:
            raise Violation(f"no gradient for {name} when it alone asks for one")
        grad = differentiate(alone, {name: leaf}, direction)[name]
        wanted = together[name]
        if grad is None or wanted is None:
            if (grad is None) != (wanted is None):
                raise Violation(f"the gradient of {name} depends on which inputs ask for one")
            continue
        slack = 200 * torch.finfo(leaf.dtype).eps * (float(wanted.abs().amax()) + 1)
        if not bool(((grad - wanted).abs() <= slack).all()):
            raise Violation(f"the gradient of {name} depends on which inputs ask for one")


@register(
    "gradient-direction",
    "gradient",
    reason="the gradient that arrives may be expanded, transposed, or used twice",
    source="output.sum().backward() gives strides of 0; torch.autograd.grad with retain_graph",
    cases=bases(4, 20, 60, n_query=(1, 4, 17, 40), grad=(True,), pattern=("random", "empty rows"),
                value_size=("same", 5)),
    script="""v.requires_grad_()
got = {call}
dense, = torch.autograd.grad(got, v, torch.ones(got.shape, dtype=got.dtype), retain_graph=True)
error = torch.autograd.grad(got.sum(), v)[0] - dense
print(error.abs().max())  # expected about 0
assert error.abs().max() < 1e-2""",
)  # fmt: skip
def directions(subject: Subject, case: Case) -> None:
    """Go backward with gradients of several strides, each compared with the oracle, then again."""
    asked = requiring_grad(subject.build(case))
    output = attached_output(subject, asked)
    leaves = {name: t for name, t in asked.tensors.items() if t.requires_grad}
    plain = direction_of(output)
    ways = {
        "expanded": torch.ones_like(plain[..., :1, :1]).expand(plain.shape),
        "one row expanded": plain[..., :1, :].expand(plain.shape),
        "transposed": plain.mT.contiguous().mT,
        "sliced": plain.repeat_interleave(2, -1)[..., ::2],
        "dense": plain,
    }
    reference = Reference(asked, subject.rules, grad=True)
    for way, direction in ways.items():
        found = differentiate(output, leaves, direction)
        for name, wanted in reference.gradients(direction).items():
            grad = found[name]
            grad = torch.zeros_like(leaves[name]) if grad is None else grad
            try:
                compare(grad, wanted, f"gradient of {name}")
            except Violation as violation:
                violation.message += f", where the gradient that arrives is {way}"
                raise


@register(
    "gradient-shared",
    "gradient",
    reason="one tensor as query, key and value gets the sum of the three gradients",
    source="self-attention without projections; keys that are the values (shared projections)",
    cases=bases(3, 14, 40, heads=((1, 1), (3, 1)), n_key=("same",), n_query=(1, 4, 17),
                grad=(True,), mask=("none", "bool")),
    script="""apart = [x.detach().clone().requires_grad_() for x in (q, k, k)]
got = torch.autograd.grad(attention(*apart{flags}).square().sum(), apart)
k.requires_grad_()
error = torch.autograd.grad(attention(q, k, k{flags}).square().sum(), k)[0] - got[1] - got[2]
print(error.abs().max())  # expected about 0
assert error.abs().max() < 1e-2""",
)  # fmt: skip
def shared_gradients(subject: Subject, case: Case) -> None:
    """Let one leaf be two or all three of query, key and value; its gradients add up."""
    plain = subject.build(case)
    if not plain.query.shape == plain.key.shape == plain.value.shape:
        return  # a simpler case, in which no tensor can stand for another
    for ways in (THREE, THREE[1:], THREE[:2], THREE[::2]):
        leaf = plain.tensors[ways[-1]].detach().requires_grad_()
        shared: dict[str, Any] = dict.fromkeys(ways, leaf)
        asked = replace(plain, **shared)
        output = attached_output(subject, asked)
        direction = direction_of(output)
        parts = Reference(asked, subject.rules, grad=True).gradients(direction)
        values = [parts[name].value for name in ways]
        adding = 2 * torch.finfo(leaf.dtype).eps * sum(value.abs() for value in values)
        allowed = sum((parts[name].allowed for name in ways), adding)
        grad = differentiate(output, {"shared": leaf}, direction)["shared"]
        got = torch.zeros_like(leaf) if grad is None else grad
        wanted = Expected(torch.stack(values).sum(0), torch.as_tensor(allowed))
        compare(got, wanted, f"gradient of one tensor as {', '.join(ways)}")
