"""What mistake an output looks like: known mistakes, computed, and compared with what came.

Each entry of `MISTAKES` computes in float64 what an implementation with that mistake returns. The
output of failing calls is compared with all of them; the one that explains most of them, and
differs from the right answer, is the likely mechanism.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from attncheck.conformance.case import Inputs
from attncheck.conformance.mistakes import MISTAKES, given_scale
from attncheck.conformance.oracle import PLAIN, Rules, attend
from attncheck.conformance.subject import Violation

__all__ = ["MISTAKES", "likely_mistake"]


def likely_mistake(
    violations: Sequence[Violation], rules: Rules = PLAIN, passed: Sequence[Inputs] = ()
) -> str:
    """Return the known mistake that explains wrong outputs, or an empty string.

    Args:
        violations: Of one property, on several inputs; the mistake that explains most of them
            is named, since small inputs make many mistakes look alike.
        rules: What attention means for the implementation.
        passed: Calls that were right: a mistake that would have shown in one of them comes after
            those that explain this too.
    """
    order = [name for violation in violations for name in matches(violation, rules)]
    votes = Counter(order)
    ranked = sorted(votes, key=lambda name: (-votes[name], order.index(name)))
    best = [name for name in ranked if 2 * votes[name] >= votes[ranked[0]]]
    fitting = (name for name in best if not any(_would_show(name, i, rules) for i in passed))
    return next(fitting, best[0]) if best else ""


def _would_show(name: str, inputs: Inputs, rules: Rules) -> bool:
    """Whether a mistake gives something else than the right answer on some inputs."""
    mistake = MISTAKES.get(name.removeprefix("matches "))
    if mistake is None:
        return False
    inputs = _on_cpu(inputs)
    right = attend(inputs, torch.float64, rules)[0]
    try:
        wrong = mistake(inputs, rules)
    except (RuntimeError, IndexError, ValueError, TypeError, ZeroDivisionError):
        return False
    return wrong.shape == right.shape and not _same(wrong, right, _slack(inputs, right))


def matches(violation: Violation, rules: Rules = PLAIN) -> list[str]:
    """Return all known mistakes that give what one call gave."""
    inputs, got = violation.inputs, violation.got
    if inputs is None or got is None:
        return []
    if violation.argument:
        found = _likely_gradient(violation, rules)
        return [found] if found else []
    inputs = _on_cpu(inputs)
    got = got.detach().cpu().double()
    right = attend(inputs, torch.float64, rules)[0]
    slack = _slack(inputs, right)
    # Rows of NaN, where some are not, come from seeing no key: the rest tells why.
    known = ~got.isnan() if bool((~got.isnan()).any()) else torch.ones_like(got, dtype=torch.bool)
    names = []
    for name, mistake in MISTAKES.items():
        try:
            wrong = mistake(inputs, rules)
        except (RuntimeError, IndexError, ValueError, TypeError, ZeroDivisionError):
            continue
        if wrong.shape != got.shape or _same(wrong[known], right[known], slack):
            continue
        if bool(wrong.isnan().all()) and "-inf" not in name:
            continue  # NaN everywhere says nothing about its cause
        if _same(wrong[known], got[known], slack):
            names.append(f"matches {name}")
    if not names and bool(got.isnan().any()):
        names = ["NaN: softmax of a row without visible keys, or inf - inf in a running maximum"]
    return names


def _on_cpu(inputs: Inputs) -> Inputs:
    query, key, value = (x.detach().cpu() for x in (inputs.query, inputs.key, inputs.value))
    mask = None if inputs.mask is None else inputs.mask.detach().cpu()
    return replace(inputs, query=query, key=key, value=value, mask=mask)


def _slack(inputs: Inputs, right: Tensor) -> float:
    eps = float(torch.finfo(inputs.query.dtype).eps)
    size = float(inputs.value.double().abs().amax()) if inputs.value.numel() else 1.0
    return 40 * eps * (size + float(right.abs().amax() if right.numel() else 0.0))


def _same(a: Tensor, b: Tensor, slack: float) -> bool:
    return bool(torch.allclose(a, b, rtol=1e-6, atol=slack, equal_nan=True))


def _likely_gradient(violation: Violation, rules: Rules) -> str:
    """Name a wrong gradient by its ratio to the right one."""
    inputs, got, name = violation.inputs, violation.got, violation.argument
    if inputs is None or got is None or name == "weights":
        return ""
    from attncheck.conformance.examine import direction_of
    from attncheck.conformance.numerics import gradients

    shape = (*inputs.query.shape[:-1], inputs.value.shape[-1])
    direction = direction_of(torch.empty(shape, dtype=inputs.query.dtype))
    right = gradients(inputs, direction, rules)[name]
    got = got.double().cpu()
    if not bool(got.any()):
        return f"the gradient of {name} is zero: cut off"
    if bool(got.isnan().any()):
        return "NaN in the backward pass: softmax of a row without visible keys"
    if right.numel() < 6 or not bool(right.any()):
        return ""  # two numbers are soon proportional
    ratio = float((got * right).sum() / (right * right).sum())
    if not torch.allclose(got, ratio * right, rtol=1e-3, atol=1e-4 * float(right.abs().amax())):
        return ""
    scale = given_scale(inputs)
    for text, factor in (
        ("without the factor scale", 1 / scale if scale else 0.0),
        ("with the factor scale twice", scale),
        ("with the wrong sign", -1.0),
    ):
        if abs(factor - 1) > 0.05 and abs(ratio - factor) < 1e-3 * abs(factor):
            return f"the gradient of {name} is computed {text}"
    if abs(ratio - 1) < 1e-3:
        return ""
    return f"the gradient of {name} is {ratio:.4g} times the right one"
