"""The pytest door: one test item for each property, with an id that ``-k`` selects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from attncheck.conformance.battery import (
    checked_arguments,
    declared_capabilities,
    name_of,
    select_properties,
)
from attncheck.conformance.capabilities import Capabilities
from attncheck.conformance.design import Plan
from attncheck.conformance.probe import probe
from attncheck.conformance.registry import Property
from attncheck.conformance.report import Failure, render_failure
from attncheck.conformance.run import run_property
from attncheck.conformance.subject import Subject
from attncheck.errors import CheckFailure

if TYPE_CHECKING:
    import pytest

__all__ = ["parametrize_with_checks"]


class _Settings:
    """What all checks of one decorator share; every function is probed once."""

    def __init__(
        self,
        returns_weights: bool,
        capabilities: Capabilities,
        plan: Plan,
        device: str,
    ) -> None:
        self.returns_weights = returns_weights
        self.capabilities = capabilities
        self.plan = plan
        self.device = device
        self._found: dict[int, tuple[Subject, Plan, Failure | None]] = {}

    def probed(self, function: Callable[..., Any]) -> tuple[Subject, Plan, Failure | None]:
        """Return what a function supports, asked once; it need not be hashable."""
        if id(function) not in self._found:  # the subject keeps it alive
            subject = Subject(function, self.returns_weights, self.capabilities, self.device)
            plan, failure = probe(subject, self.plan)
            subject.refused, subject.dtypes = plan.refused, plan.dtypes
            self._found[id(function)] = subject, plan, failure
        return self._found[id(function)]


class Check:
    """One property as a callable that a test gives the implementation."""

    def __init__(self, entry: Property, settings: _Settings) -> None:
        self.entry = entry
        self.settings = settings

    def __call__(self, function: Callable[..., Any]) -> None:
        """Run the property; raise `CheckFailure`, or skip what is not supported.

        Args:
            function: The implementation.
        """
        import pytest

        __tracebackhide__ = True
        subject, plan, failure = self.settings.probed(function)
        if failure is not None:
            raise CheckFailure(render_failure(failure), failure)
        outcome = run_property(self.entry, subject, plan)
        if outcome.failure is not None:
            raise CheckFailure(render_failure(outcome.failure), outcome.failure)
        if outcome.status == "not supported":
            words = ", ".join(text for text, _ in subject.refusals.most_common(2))
            pytest.skip(f"not supported: {words}")

    def __repr__(self) -> str:
        return f"Check({self.entry.id!r})"


def parametrize_with_checks(
    functions: Iterable[Callable[..., Any]],
    *,
    returns_weights: bool = False,
    capabilities: Capabilities | None = None,
    effort: str = "default",
    seed: int = 0,
    device: str = "cpu",
    select: Iterable[str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> pytest.MarkDecorator:
    """Decorate a test with arguments ``attention`` and ``check``: one item for each property.

    Args:
        functions: Implementations; see `check_attention` for these and all further arguments.
        returns_weights: Whether they return ``(output, weights)``.
        capabilities: What they support.
        effort: ``"quick"``, ``"default"`` or ``"thorough"``.
        seed: Chooses the inputs.
        device: Where inputs are made.
        select: Ids, families or tags of the properties.
        expected_failures: Reasons by property id; these items are strict xfails.

    Raises:
        TypeError: Something that is no callable, or one function without a list.
        ValueError: An unknown effort, or an id that no property has.

    Example:
        >>> import torch
        >>> decorator = parametrize_with_checks(
        ...     [torch.nn.functional.scaled_dot_product_attention], select=["scale"]
        ... )
        >>> [parameters.id for parameters in decorator.args[1]][:2]
        ['scaled_dot_product_attention-scale-default', 'scaled_dot_product_attention-scale-given']
    """
    import pytest

    if callable(functions):
        raise TypeError("functions: expected a list of callables, got one: put it in brackets")
    if not isinstance(functions, Iterable):
        raise TypeError(f"functions: expected a list of callables, got {type(functions).__name__}")
    functions = list(functions)
    expected = checked_arguments(functions, effort, expected_failures)
    settings = _Settings(
        returns_weights, declared_capabilities(capabilities), Plan(effort, seed), device
    )
    parameters = [
        pytest.param(
            function,
            Check(entry, settings),
            id=f"{name_of(function)}-{entry.id}",
            marks=[pytest.mark.xfail(reason=expected[entry.id], strict=True)]
            if entry.id in expected
            else [],
        )
        for function in functions
        for entry in select_properties(select, returns_weights)
    ]
    return pytest.mark.parametrize(("attention", "check"), parameters)
