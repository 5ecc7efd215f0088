"""``autograd.Function.apply``, shown to somebody: also where it was bound to a name long before.

``attention = Attention.apply`` keeps the function that ``apply`` was then, whatever stands in its
place later. So the function itself is made to run other code for a while. Where somebody else has
put a function of another form there, only those calls are shown that look ``apply`` up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType
from typing import Any, Final

import torch

__all__ = ["apply_shown", "as_torch_applies"]

Shown = Callable[[type, Any, Mapping[str, Any]], Any]

_FOUND: Final = vars(torch.autograd.Function)["apply"]
_APPLY: Final[Any] = getattr(_FOUND, "__func__", None)
"""What ``apply`` of every `autograd.Function` calls."""

_SHOW: list[Shown] = []


class _Lent:
    """Lends its code to `_APPLY`."""

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        from attncheck.capture.recorders.apply import show  # the globals here are torch's

        super()  # as the code has it in whose place this is put: both need the same closure
        return show(cls, args, kwargs)


_CODE: Final = vars(_Lent)["apply"].__func__.__code__


def show(cls: type, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Hand a call to whoever asked last; torch runs it where nobody did."""
    if _SHOW:
        return _SHOW[-1](cls, args, kwargs)
    return as_torch_applies(cls, *args, **kwargs)


def _copied(function: Any) -> Callable[..., Any]:
    """Return the same function, which keeps its code; any other that is found stays as it is."""
    if not isinstance(function, FunctionType):

        def found(cls: type, *args: Any, **kwargs: Any) -> Any:
            return _FOUND.__get__(None, cls)(*args, **kwargs)

        return found
    copied = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


as_torch_applies: Final = _copied(_APPLY)
"""``apply`` of a class and its arguments, as it was found."""


def _lends() -> bool:
    """Whether code can be lent: to a function with the same closure."""
    if not isinstance(_APPLY, FunctionType):
        return False
    return bool(_APPLY.__code__.co_freevars == _CODE.co_freevars)


@contextmanager
def apply_shown(shown: Shown) -> Iterator[None]:
    """Hand every call of ``apply`` to a function while the context lasts.

    Args:
        shown: Gets the class, the arguments and those by name; returns what ``apply`` would.
    """
    _SHOW.append(shown)
    function, lends = torch.autograd.Function, _lends()
    before = _APPLY.__code__ if lends else vars(function)["apply"]
    if lends:
        _APPLY.__code__ = _CODE
    else:
        by_name: Any = classmethod(lambda cls, *args, **kwargs: show(cls, args, kwargs))
        type.__setattr__(function, "apply", by_name)
    try:
        yield
    finally:
        if lends:
            _APPLY.__code__ = before
        else:
            type.__setattr__(function, "apply", before)
        _SHOW.remove(shown)
