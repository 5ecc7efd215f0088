"""A script of under 15 lines that shows a failure with torch alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attncheck.conformance.case import Case
from attncheck.conformance.registry import Property
from attncheck.conformance.subject import Subject, Violation

__all__ = ["oracle_script", "script_for"]


def script_for(
    entry: Property, case: Case, violation: Violation, subject: Subject, own: bool = True
) -> str:
    """Return the script that reproduces a violation of a property on a case.

    Args:
        entry: The property.
        case: The input.
        violation: What is wrong.
        subject: Whose function is called.
        own: By the lines of the property, if it has any; False: by one call and the oracle.
    """
    if subject.rules.lines is None:
        return ""
    if entry.script and own:
        return property_script(entry, case, subject)
    return oracle_script(case, subject, violation.argument)


GRADIENT_NAMES = {"query": "q", "key": "k", "value": "v", "attn_mask": "mask"}


def property_script(entry: Property, case: Case, subject: Subject) -> str:
    """Return the lines of an input and of a property."""
    more = "".join(f", {n}={t}" for n, t in case.flag_text().items() if n != "attn_mask")
    body = entry.script.replace("{more}", more).replace("{call}", case.call_text())
    body = body.replace("{flags}", case.call_text().removeprefix("attention(q, k, v")[:-1])
    lines = [*_head(subject), *case.lines(), body]
    if subject.returns_weights and "weights" not in entry.tags:
        lines.insert(2, "both = attention; attention = lambda *x, **o: both(*x, **o)[0]")
    return "\n".join(lines)


def oracle_script(case: Case, subject: Subject, argument: str = "") -> str:
    """Return lines that compare a call with float64 arithmetic written out.

    Args:
        case: The input.
        subject: Whose function is called.
        argument: ``"weights"``, the argument whose gradient is wrong, or empty for the output.
    """
    gradient = argument if argument in GRADIENT_NAMES else ""
    lines = [*_head(subject), *case.lines()]
    inputs = "q, k, v" + (", mask" if gradient == "attn_mask" else "")
    if gradient:
        lines.append(f"for x in ({inputs}): x.requires_grad_()")
    rules = subject.rules
    call = case.call_text()[:-1] + (f", {rules.call})" if rules.call else ")")
    part = f"[{int(argument == 'weights')}]" if subject.returns_weights else ""
    lines.append(f"got = {call}{part}")
    group = f".repeat_interleave({case.ratio}, -3)" if case.ratio > 1 else ""
    scale = case.flag_text().get("scale") or f"{case.size} ** -0.5"
    lines.append(f"s = q.double() @ k.double(){group}.mT * {scale}")
    lines += rules.lines or ()
    if case.mask == "float":
        lines.append("s = s + mask")
    hidden = []
    if case.mask == "bool":
        hidden.append("~mask")
    if case.causal:
        hidden.append(f"torch.ones({case.n_query}, {case.n_key}).triu(1).bool()")
    if hidden:
        lines.append(f"s = s.masked_fill({' | '.join(hidden)}, -torch.inf)")
    weights = "s.softmax(-1)"
    if rules.sinks is not None:
        lines.append("sink = sinks[:, None, None].expand(*s.shape[:-1], 1)")
        weights = "torch.cat([s, sink], -1).softmax(-1)[..., :-1]"
    if (case.mask != "none" or rules.window != (None, None)) and rules.sinks is None:
        weights += ".masked_fill((s == -torch.inf).all(-1, keepdim=True), 0)"
    lines.append(f"want = {weights}" + ("" if argument == "weights" else f" @ v.double(){group}"))
    if gradient:
        name = GRADIENT_NAMES[gradient]
        lines.append("d = torch.randn(got.shape, dtype=got.dtype)")
        lines.append(
            f"got, want = (torch.autograd.grad(x, {name}, d.to(x.dtype), allow_unused=True)[0] "
            "for x in (got, want))"
        )
    lines.append("print((got - want).abs().max())  # expected about 0")
    return "\n".join(lines)


def _head(subject: Subject) -> list[str]:
    lines = ["import torch", _import_of(subject.function)]
    if subject.device != "cpu":
        lines.append(f'torch.set_default_device("{subject.device}")')
    return lines


def _import_of(function: Callable[..., Any]) -> str:
    """Return the line that binds ``attention``."""
    name = getattr(function, "__qualname__", "")
    module = getattr(function, "__module__", None)
    if getattr(function, "__name__", "") == "scaled_dot_product_attention":
        return "from torch.nn.functional import scaled_dot_product_attention as attention"
    if module and name.isidentifier() and module != "__main__":
        return f"from {module} import {name} as attention"
    return f"attention = ...  # {name or type(function).__name__}: put your function here"
