"""The door: run the properties on an implementation, report, raise once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from attncheck.attention.arguments import reasons, words
from attncheck.conformance import properties as _properties  # noqa: F401 - fills the registry
from attncheck.conformance.capabilities import Capabilities
from attncheck.conformance.design import Plan
from attncheck.conformance.extensions import EXTENSIONS, Extension
from attncheck.conformance.probe import probe
from attncheck.conformance.registry import PROPERTIES, Property
from attncheck.conformance.report import ConformanceReport, Outcome
from attncheck.conformance.run import run_property
from attncheck.conformance.subject import Subject
from attncheck.errors import CheckFailure

__all__ = ["check_attention", "name_of", "select_properties"]

EFFORTS = ("quick", "default", "thorough")


def check_attention(
    function: Callable[..., Any],
    *,
    returns_weights: bool = False,
    capabilities: Capabilities | None = None,
    effort: str = "default",
    seed: int = 0,
    device: str = "cpu",
    select: Iterable[str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    extension: str | None = None,
    raises: bool = True,
) -> ConformanceReport:
    """Check an attention implementation against a battery of properties.

    Args:
        function: Has the signature of ``torch.nn.functional.scaled_dot_product_attention``. Only
            arguments that differ from their defaults are passed.
        returns_weights: Whether it returns ``(output, weights)`` instead of the output.
        capabilities: What it supports; what is not declared is found out by asking.
        effort: ``"quick"`` (seconds), ``"default"`` (under a minute) or ``"thorough"`` (minutes).
        seed: Chooses the inputs; the same seed gives the same verdict.
        device: Where the inputs are made, for instance ``"cuda"``.
        select: Ids, families or tags of the properties to run; all by default.
        expected_failures: Reasons by property id: these must fail, and are reported apart.
        extension: What the function computes instead of plain attention: ``"sliding_window"``,
            ``"softcap"``, ``"alibi"``, ``"sinks"``, ``"kv_cache"``, ``"paged"`` or ``"packed"``;
            their signatures are in `attncheck.conformance.extensions.EXTENSIONS`.
        raises: Whether to raise when something fails.

    Returns:
        The report; print it, or save it as JSON.

    Raises:
        TypeError: ``function`` is no callable, ``capabilities`` no `Capabilities`, ``select`` no
            words, or ``expected_failures`` no mapping.
        CheckFailure: A property does not hold. One error lists all of them, worst first; its
            ``finding`` is the report.
        ValueError: An unknown effort, or an id that no property has.

    Example:
        >>> import torch
        >>> def half_right(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None):
        ...     return torch.softmax(q @ k.mT, -1) @ v
        >>> report = check_attention(
        ...     half_right, effort="quick", select=["scale-default"], raises=False
        ... )
        >>> print(report.failures[0].mechanism)
        matches no scale at all (scores are not divided by sqrt of the head size)
    """
    expected = checked_arguments([function], effort, expected_failures)
    declared = declared_capabilities(capabilities)
    if extension is not None:
        if extension not in EXTENSIONS:
            raise ValueError(f"extension: {extension!r} is none of {', '.join(EXTENSIONS)}")
        if returns_weights:
            raise ValueError(
                f"returns_weights: extension {extension!r} judges outputs alone; pass a function "
                "that returns no weights"
            )
        entries = _properties_of(EXTENSIONS[extension], select)
        report = _run_extension(
            function, EXTENSIONS[extension], entries, declared, effort, seed, device, expected
        )
    else:
        subject = Subject(function, returns_weights, declared, device)
        entries = select_properties(select, returns_weights)
        report = run_battery(subject, entries, effort, seed, expected)
    if raises and not report.passed:
        raise CheckFailure(str(report), report)
    return report


def checked_arguments(
    functions: Iterable[Callable[..., Any]], effort: str, expected: Mapping[str, str] | None
) -> dict[str, str]:
    """Return the expected failures, after a look at what both doors are given.

    Raises:
        TypeError: Something that cannot be called, or expected failures that are no mapping.
        ValueError: An unknown effort, or an id that no property has.
    """
    for function in functions:
        if not callable(function):
            raise TypeError(
                "function: expected a callable (query, key, value, ...), "
                f"got {type(function).__name__}"
            )
    if effort not in EFFORTS:
        raise ValueError(f"effort: expected one of {', '.join(EFFORTS)}, got {effort!r}")
    held = reasons(expected, "expected_failures")
    known = set(PROPERTIES)
    for id in held:
        if id not in known:
            near = ", ".join(get_close_matches(id, known)) or "see attncheck.conformance.PROPERTIES"
            raise ValueError(f"expected_failures: no property is called {id!r}; {near}")
    return held


def declared_capabilities(capabilities: Any) -> Capabilities:
    """Return what was declared; None declares nothing.

    Raises:
        TypeError: It is something else than `Capabilities`.
    """
    if capabilities is None:
        return Capabilities()
    if not isinstance(capabilities, Capabilities):
        raise TypeError(
            f"capabilities: is {type(capabilities).__name__}; expected attncheck.Capabilities"
        )
    return capabilities


def select_properties(select: Iterable[str] | None, returns_weights: bool) -> list[Property]:
    """Return the properties of some ids, families or tags.

    Raises:
        TypeError: They are no words.
        ValueError: A word selects nothing.
    """
    entries = [p for p in PROPERTIES.values() if returns_weights or "weights" not in p.tags]
    return _selected(entries, PROPERTIES.values(), select)


def _selected(
    entries: list[Property],
    known: Iterable[Property],
    select: Iterable[str] | None,
    where: str = "",
) -> list[Property]:
    """Return those of some properties that have one of some words as id, family or tag.

    Args:
        entries: To select from.
        known: Whose words may be used.
        select: The words; None: all.
        where: What a message says of those that are known.
    """
    if select is None:
        return entries
    chosen = set(words(select, "select", "ids, families or tags of properties"))
    every = {word for entry in known for word in (entry.id, *entry.tags)}
    unknown = sorted(chosen - every)
    if unknown:
        near = [name for word in unknown for name in get_close_matches(word, every)]
        hint = f"; near: {', '.join(near)}" if near else ""
        raise ValueError(f"select: nothing is called {', '.join(unknown)}{where}{hint}")
    return [entry for entry in entries if entry.id in chosen or entry.tags & chosen]


def run_battery(
    subject: Subject,
    entries: Iterable[Property],
    effort: str,
    seed: int,
    expected: Mapping[str, str],
) -> ConformanceReport:
    """Probe what is supported, run the properties, collect the outcomes."""
    report = ConformanceReport(name_of(subject.function), effort, seed)
    plan, failure = probe(subject, Plan(effort, seed))
    if failure is not None:
        report.outcomes.append(Outcome("plain-input", "support", "failed", 1, 0, 0.0, failure))
        return report
    subject.refused, subject.dtypes = plan.refused, plan.dtypes
    for entry in entries:
        outcome = run_property(entry, subject, plan)
        if entry.id in expected:
            passed = outcome.status != "failed"
            status = "unexpected pass" if passed else "expected failure"
            outcome = replace(outcome, status=status, note=expected[entry.id])
        report.outcomes.append(outcome)
    report.unsupported = Counter(subject.refusals)
    return report


def _run_extension(
    function: Callable[..., Any],
    extension: Extension,
    entries: Sequence[Property],
    declared: Capabilities,
    effort: str,
    seed: int,
    device: str,
    expected: Mapping[str, str],
) -> ConformanceReport:
    """Run properties on every variant of an extension."""
    report = ConformanceReport(name_of(function), effort, seed)
    for variant in extension.variants:
        subject = Subject(
            variant.adapt(function),
            capabilities=declared.and_also(extension.capabilities),
            device=device,
            rules=variant.rules,
            original=function,
        )
        part = run_battery(subject, entries, effort, seed, expected)
        report.outcomes += [_labelled(outcome, variant.label) for outcome in part.outcomes]
        report.unsupported += part.unsupported
    return report


def _properties_of(extension: Extension, select: Iterable[str] | None) -> list[Property]:
    """Return the properties of the battery that apply to an extension, then its own.

    Raises:
        TypeError: ``select`` holds no words.
        ValueError: It selects nothing of these.
    """
    entries = [PROPERTIES[id] for id in extension.select] + list(extension.properties)
    names = ", ".join(entry.id for entry in entries)
    return _selected(
        entries, entries, select, f" among the properties of {extension.name}: {names}"
    )


def _labelled(outcome: Outcome, label: str) -> Outcome:
    """Put the variant's name before the property's."""
    failure = outcome.failure and replace(outcome.failure, id=f"{label}/{outcome.id}")
    return replace(outcome, id=f"{label}/{outcome.id}", failure=failure)


def name_of(function: Callable[..., Any]) -> str:
    """Return a name for a function, a partial or a callable object."""
    inner = getattr(function, "func", function)
    return str(getattr(inner, "__name__", type(inner).__name__))
