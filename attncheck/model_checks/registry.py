"""The registry of promises: each is one entry with an id, a reason and a source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast

from attncheck.checks.finding import Finding
from attncheck.model_checks.finite import unfinite_output
from attncheck.model_checks.subject import ModelSubject

__all__ = ["PROMISES", "Guess", "Promise", "register"]


@dataclass(frozen=True)
class Guess:
    """Whether a model makes a promise, where it does not say so and this was inferred.

    Attributes:
        made: Whether it looks like it. If not, nothing is tried, and that has to be seen.
        note: What it was inferred from, or why it could not be, and how to decide.
    """

    made: bool
    note: str


Applies = Callable[[ModelSubject], str | Guess]
Judge = Callable[[ModelSubject], Finding]
AnyJudge = TypeVar("AnyJudge", bound=Judge)


@dataclass(frozen=True)
class Promise:
    """Something that a whole model with attention must do.

    Attributes:
        id: What ``-k`` selects and ``expected_failures`` names.
        reason: Why it matters, one line.
        source: Where it comes from: a paper, documentation, an issue where the bug was real.
        tags: Further words to select by.
        applies: Says why a model makes no such promise; empty if it does; or a guess.
        judge: Tries the model and returns a `Finding`; never raises for what it finds.

    Example:
        >>> PROMISES["no-future-leakage"].reason
        'a model that sees the token it has to predict learns nothing'
    """

    id: str
    reason: str
    source: str
    tags: frozenset[str]
    applies: Applies
    judge: Judge


_ENTRIES: dict[str, Promise] = {}

PROMISES: Final = MappingProxyType(_ENTRIES)
"""All promises by id, read-only, in the order in which they are tried."""


def register(
    id: str,
    *,
    reason: str,
    source: str,
    applies: Applies,
    tags: Sequence[str] = (),
) -> Callable[[AnyJudge], AnyJudge]:
    """Make a function that judges a model an entry of `PROMISES`.

    It is asked only about models whose output is finite: of others that is told instead.

    Args:
        id: Unique; small letters, digits and hyphens.
        reason: Why it matters, one line.
        source: Where it comes from.
        applies: Says why a model makes no such promise, see `Promise`.
        tags: Further words to select by.
    """

    def enter(judge: AnyJudge) -> AnyJudge:
        if id in _ENTRIES:
            raise ValueError(f"id: a promise {id!r} exists already")

        @wraps(judge)
        def judged(subject: ModelSubject, *args: Any, **kwargs: Any) -> Finding:
            unfinite = unfinite_output(subject, id.replace("-", "_"))
            return judge(subject, *args, **kwargs) if unfinite is None else unfinite

        _ENTRIES[id] = Promise(id, reason, source, frozenset({id, *tags}), applies, judged)
        return cast(AnyJudge, judged)

    return enter
