"""The pytest door: one test item for each model and promise, with an id that ``-k`` selects."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from torch import nn

from attncheck.attention.arguments import reasons
from attncheck.checks.render import render
from attncheck.errors import CheckFailure, UncheckedWarning
from attncheck.model_checks.battery import run_promise, select_promises
from attncheck.model_checks.registry import PROMISES, Promise
from attncheck.model_checks.report import UNCHECKED
from attncheck.model_checks.subject import ModelSubject

if TYPE_CHECKING:
    import pytest

__all__ = ["ModelCheck", "parametrize_with_model_checks"]

Factory = Callable[[], Any]
"""Makes a model, ``(model, inputs)``, or a `ModelSubject`."""


class ModelCheck:
    """One promise as a callable that a test gives the model's factory."""

    def __init__(self, entry: Promise, subject_of: Callable[[Factory], ModelSubject]) -> None:
        self.entry = entry
        self._subject_of = subject_of

    def __call__(self, factory: Factory) -> None:
        """Try the promise; raise `CheckFailure`, or skip where the model does not make it.

        Where it can't be told whether it does, skip with an `UncheckedWarning`.

        Args:
            factory: Makes the model; it is called once for all promises.
        """
        import pytest

        __tracebackhide__ = True
        subject = self._subject_of(factory)
        outcome = run_promise(self.entry, subject)
        if outcome.status == UNCHECKED:
            told = f"not checked: {outcome.note}"
            line = f"{subject.name}: {outcome.id} was {told}"
            warnings.warn(line, UncheckedWarning, stacklevel=2)
            pytest.skip(told)
        if outcome.status == "not applicable":
            pytest.skip(f"not applicable: {outcome.note}")
        if outcome.finding is not None and not outcome.finding.passed:
            raise CheckFailure(render(outcome.finding), outcome.finding)
        if outcome.status == "error":
            raise CheckFailure(f"the model raised: {outcome.note}", outcome)

    def __repr__(self) -> str:
        return f"ModelCheck({self.entry.id!r})"


def parametrize_with_model_checks(
    factories: Iterable[Factory],
    *,
    select: Iterable[str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> pytest.MarkDecorator:
    """Decorate a test with arguments ``model`` and ``check``: one item for each promise.

    Args:
        factories: Each makes a model without arguments: a Hugging Face model alone,
            ``(model, inputs)``, or a `ModelSubject`. Each is called once.
        select: Ids or tags of the promises.
        expected_failures: Reasons by id; these items are strict xfails.

    Raises:
        TypeError: ``factories`` is no list of functions, ``select`` holds no words, or
            ``expected_failures`` is no mapping.
        ValueError: An id that no promise has.

    Example:
        >>> decorator = parametrize_with_model_checks([nn.Identity], select=["mask"])
        >>> [parameters.id for parameters in decorator.args[1]][:2]
        ['Identity-no-future-leakage', 'Identity-padding-invariant']
    """
    import pytest

    if callable(factories) or not isinstance(factories, Iterable):
        raise TypeError(
            f"factories: is {type(factories).__name__}; expected a list of functions that make a "
            "model: put one in brackets"
        )
    factories = list(factories)
    for factory in factories:
        if not callable(factory):
            raise TypeError(
                f"factories: one is {type(factory).__name__}; expected functions that make a model"
            )
    expected = reasons(expected_failures, "expected_failures")
    unknown = sorted(set(expected) - set(PROMISES))
    if unknown:
        raise ValueError(f"expected_failures: no promise is called {', '.join(unknown)}")
    subject_of = lru_cache(maxsize=None)(_made)
    parameters = [
        pytest.param(
            factory,
            ModelCheck(entry, subject_of),
            id=f"{_name_of(factory)}-{entry.id}",
            marks=[pytest.mark.xfail(reason=expected[entry.id], strict=True)]
            if entry.id in expected
            else [],
        )
        for factory in factories
        for entry in select_promises(select)
    ]
    return pytest.mark.parametrize(("model", "check"), parameters)


def _made(factory: Factory) -> ModelSubject:
    made = factory()
    if isinstance(made, nn.Module | ModelSubject):
        return ModelSubject.of(made)
    if isinstance(made, tuple) and len(made) == 2:
        return ModelSubject.of(made[0], made[1])
    raise TypeError(
        f"{_name_of(factory)}: made {type(made).__name__}; expected a model, (model, inputs) or a "
        "ModelSubject"
    )


def _name_of(factory: Factory) -> str:
    inner = getattr(factory, "func", factory)
    return str(getattr(inner, "__name__", type(inner).__name__))
