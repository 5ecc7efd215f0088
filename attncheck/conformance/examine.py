"""Agreement with the oracle on one input: form, output, weights, gradients, untouched inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attncheck.conformance.capabilities import is_refusal
from attncheck.conformance.case import Case, Inputs
from attncheck.conformance.numerics import Expected, Reference, worst
from attncheck.conformance.subject import Crash, Refused, Result, Subject, Violation

__all__ = ["agrees", "check_form", "check_values", "compare"]


def agrees(subject: Subject, case: Case) -> None:
    """Raise unless the implementation does on this input what the oracle does."""
    inputs = subject.build(case)
    if subject.references is None:
        agrees_on(subject, inputs, case.grad)
    else:
        agrees_on(subject, inputs, case.grad, subject.references(case, inputs))


def agrees_on(
    subject: Subject, inputs: Inputs, grad: bool = False, reference: Reference | None = None
) -> Result:
    """As `agrees`, for tensors; return what the implementation returned."""
    reference = reference or Reference(inputs, subject.rules, grad)
    expected = reference.values(subject.returns_weights)
    asked = requiring_grad(inputs) if grad else inputs
    before = {name: (tensor, tensor._version) for name, tensor in asked.tensors.items()}
    copies = {name: tensor.detach().clone() for name, tensor in inputs.tensors.items()}
    result = subject.call(asked)
    check_form(result, asked)
    check_values(result, expected, inputs)

    def check_untouched(when: str) -> None:
        for name, (tensor, version) in before.items():
            same = tensor._version == version and torch.equal(tensor, copies[name])
            if not same and not (copies[name].isnan().any()):
                raise Violation(f"{name} was modified in place{when}", inputs=inputs)

    check_untouched("")
    if grad:
        check_gradients(subject, asked, result, reference)
        check_untouched(" by the backward pass")
    return result


def check_form(result: Result, inputs: Inputs) -> None:
    """Check shape, dtype and device of the output and the shape of the weights."""
    query, value = inputs.query, inputs.value
    shape = (*query.shape[:-1], value.shape[-1])
    output = result.output
    wanted = {
        "shape": (tuple(output.shape), tuple(shape)),
        "dtype": (output.dtype, query.dtype),
        "device": (output.device.type, query.device.type),
        "layout": (output.layout, torch.strided),
    }
    for what, (got, expected) in wanted.items():
        if got != expected:
            raise Violation(f"{what} of the output is {got}, expected {expected}")
    if output.requires_grad and not any(t.requires_grad for t in inputs.tensors.values()):
        raise Violation("the output asks for a gradient, and no input does")
    if result.weights is not None:
        full = (*query.shape[:-1], inputs.key.shape[-2])
        if tuple(result.weights.shape) != full:
            raise Violation(
                f"shape of the weights is {tuple(result.weights.shape)}, expected {full}"
            )


def check_values(result: Result, expected: dict[str, Expected], inputs: Inputs) -> None:
    """Compare output and weights with what is expected."""
    compare(result.output, expected["output"], "output", inputs)
    if result.weights is not None:
        compare(result.weights, expected["weights"], "weights", inputs)


def compare(
    got: Tensor, expected: Expected, what: str, inputs: Inputs | None = None, argument: str = ""
) -> None:
    """Raise a `Violation` if an element lies outside its allowance."""
    bad = worst(got, expected)
    if bad is None:
        return
    position = f"{what}[{', '.join(str(i) for i in bad.index)}]"
    raise Violation(
        f"{what} is wrong at {bad.count} of {bad.total} positions",
        severity=bad.ratio,
        evidence={
            "at": position,
            "expected": f"{bad.expected:.8g}",
            "got": f"{bad.got:.8g}",
            "allowed error": f"{bad.allowed:.2g}",
        },
        inputs=inputs,
        got=got.detach(),
        argument="weights" if what.startswith("weights") else argument,
    )


def requiring_grad(inputs: Inputs) -> Inputs:
    """Return the same call with every floating tensor asking for a gradient, strides kept."""
    query, key, value = (
        x.detach().requires_grad_() for x in (inputs.query, inputs.key, inputs.value)
    )
    mask = inputs.mask
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.detach().requires_grad_()
    return replace(inputs, query=query, key=key, value=value, mask=mask)


def direction_of(output: Tensor) -> Tensor:
    """Return what the output is multiplied with before it is summed, always the same."""
    generator = torch.Generator(device="cpu").manual_seed(1)
    return torch.randn(output.shape, generator=generator).to(output.device, output.dtype)


def check_gradients(subject: Subject, asked: Inputs, result: Result, reference: Reference) -> None:
    """Compare gradients with those of the oracle."""
    if not result.output.requires_grad:
        _refuse_or_fail_detached(subject, asked)
    direction = direction_of(result.output)
    leaves = {n: t for n, t in asked.tensors.items() if t.requires_grad}
    kept, toward = result.output.detach().clone(), direction.clone()
    found = differentiate(result.output, leaves, direction)
    if not torch.equal(direction, toward):
        raise Violation("the gradient of the output was modified in place by the backward pass")
    if not torch.equal(result.output.detach(), kept) and not bool(kept.isnan().any()):
        raise Violation("the output was modified in place by the backward pass")
    for name, wanted in reference.gradients(direction).items():
        grad = found[name]
        if grad is None:
            grad = torch.zeros_like(leaves[name])
        if grad.shape != leaves[name].shape:
            raise Violation(f"gradient of {name} has shape {tuple(grad.shape)}")
        compare(grad, wanted, f"gradient of {name}", reference.inputs, argument=name)


def differentiate(
    output: Tensor, leaves: dict[str, Tensor], direction: Tensor
) -> dict[str, Tensor | None]:
    """Return gradients by name; a refusal or a crash in the backward pass becomes one of ours."""
    try:
        grads = torch.autograd.grad(
            output, list(leaves.values()), direction, allow_unused=True, retain_graph=True
        )
    except Exception as error:
        text = f"backward: {type(error).__name__}: {str(error)[:160]}"
        if is_refusal(error):
            raise Refused(text) from error
        raise Crash(f"raised {text}") from error
    return dict(zip(leaves, grads, strict=True))


def attached_output(subject: Subject, asked: Inputs) -> Tensor:
    """Call with inputs that ask for gradients, and return the output, if it has the form to go on.

    Raises:
        Refused: It was computed outside torch.
        Violation: It has the wrong form, or is cut off from its inputs.
    """
    result = subject.call(asked)
    check_form(result, asked)
    if not result.output.requires_grad:
        _refuse_or_fail_detached(subject, asked)
    return result.output


def _refuse_or_fail_detached(subject: Subject, asked: Inputs) -> None:
    """Judge an output without gradient: computed outside torch it is a refusal, else a failure."""
    with _Arithmetic() as seen:
        subject.call(asked)
    if seen.count == 0:
        raise Refused("gradients: computed outside torch, the output asks for none")
    raise Violation(
        "the output is cut off from its inputs: it asks for no gradient "
        "(if that is meant, declare Capabilities(gradients=False))"
    )


class _Arithmetic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts products that torch computes: none, for a kernel from elsewhere."""

    WORDS = ("mm", "matmul", "mul", "exp", "softmax", "attention", "sum", "dot")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.name()).removeprefix("aten::").split(".")[0]
        self.count += any(word in name for word in self.WORDS)
        return func(*args, **(kwargs or {}))
