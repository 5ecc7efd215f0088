"""Ways of calling: in other modes, with one tensor three times, by position, by name."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch

from attncheck.conformance.bases import bases
from attncheck.conformance.case import Case
from attncheck.conformance.examine import compare
from attncheck.conformance.numerics import expect
from attncheck.conformance.registry import register
from attncheck.conformance.subject import Subject, Violation

THREE = ("query", "key", "value")


@register(
    "state-modes",
    "state",
    reason="no_grad, inference_mode, and inputs that ask for gradients take other paths",
    source="https://docs.pytorch.org/docs/stable/notes/autograd.html",
    cases=bases(3, 12, 40),
    script="""with torch.inference_mode():
    error = {call} - {call}.clone()
print(error.abs().max())""",
)
def modes(subject: Subject, case: Case) -> None:
    """Compare with the oracle under no_grad, inference_mode and with gradients asked for."""
    inputs = subject.build(case)
    expected = expect(inputs, subject.rules)["output"]
    with torch.no_grad():
        compare(subject.call(inputs).output, expected, "output under no_grad", inputs)
    with torch.inference_mode():
        compare(subject.call(inputs).output, expected, "output under inference_mode", inputs)
    if "gradients" in subject.refused:
        return
    three = (x.detach().requires_grad_() for x in (inputs.query, inputs.key, inputs.value))
    parameters: dict[str, Any] = dict(zip(THREE, three, strict=True))
    all_asking = replace(inputs, **parameters)
    with torch.no_grad():
        got = subject.call(all_asking).output
    compare(got, expected, "output of parameters under no_grad", inputs)
    if got.requires_grad:
        raise Violation("the output asks for a gradient under no_grad")
    asking = replace(inputs, value=inputs.value.detach().requires_grad_())
    compare(subject.call(asking).output, expected, "output with gradients asked for", inputs)


@register(
    "state-shared-inputs",
    "state",
    reason="self-attention without projections passes one tensor three times",
    source="torch.nn.functional.scaled_dot_product_attention(x, x, x) in the wild",
    cases=bases(3, 12, 40, heads=((1, 1), (3, 1)), n_key=("same",), mask=("none", "bool")),
    script="""error = attention(q, q, q{flags}) - attention(q, q.clone(), q.clone(){flags})
print(error.abs().max())  # expected about 0
assert error.abs().max() < 1e-2""",
)
def shared_inputs(subject: Subject, case: Case) -> None:
    """Call with one tensor as query, key and value, and as two of the three."""
    inputs = subject.build(case)
    q, k, v = inputs.query, inputs.key, inputs.value
    if not q.shape == k.shape == v.shape:
        return  # a simpler case, in which no tensor can stand for another
    ways: list[dict[str, Any]] = [{"key": q, "value": q}, {"value": k}, {"key": q}, {"query": v}]
    for changes in ways:
        one = replace(inputs, **changes)
        compare(subject.call(one).output, expect(one, subject.rules)["output"], "output", one)


@register(
    "state-positional",
    "state",
    reason="mask, dropout and causal flag are positional too, and defaults may be spelt out",
    source="signature of torch.nn.functional.scaled_dot_product_attention",
    cases=bases(3, 8, 20, heads=((2, 1),)),
    script="""m = mask if "attn_mask" in "{flags}" else None
error = attention(q, k, v, m, 0.0, "is_causal" in "{flags}") - {call}
print(error.abs().max())  # expected about 0
assert error.abs().max() < 1e-2""",
)
def positional(subject: Subject, case: Case) -> None:
    """Pass everything by position, then everything by name."""
    inputs = subject.build(case)
    expected = expect(inputs, subject.rules)["output"]
    flags = inputs.flags
    causal = bool(flags.get("is_causal"))
    three = (inputs.query, inputs.key, inputs.value)
    rest = {k: v for k, v in flags.items() if k in ("scale", "enable_gqa")}
    if _takes(subject.function, "dropout_p", at=4) and _takes(subject.function, "is_causal", at=5):
        got = subject.invoke(*three, inputs.mask, 0.0, causal, **rest).output
    else:
        got = subject.invoke(*three, inputs.mask, **flags).output
    compare(got, expected, "output with positional arguments", inputs)
    if not all(_takes(subject.function, name, at) for at, name in enumerate(THREE)):
        return  # its names are its own
    named = dict(zip(THREE, three, strict=True))
    got = subject.invoke(
        **named, attn_mask=inputs.mask, dropout_p=0.0, is_causal=causal, **rest
    ).output
    compare(got, expected, "output with named arguments", inputs)


def _takes(function: Any, name: str, at: int) -> bool:
    """Whether a function takes an argument of this name at this position; builtins are trusted."""
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return True
    return len(names) > at and names[at] == name
