"""Where in a model the running code is: found on the call stack, with no hook on any module."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from inspect import CO_VARARGS, CO_VARKEYWORDS
from types import CodeType, FrameType
from typing import Any, Final

from torch import Tensor, nn

from attncheck.capture.call import Kind

__all__ = ["arguments_of", "given_to", "innermost", "is_running", "kind_of", "running_modules"]

OTHER_SEQUENCE: Final = frozenset(
    {
        "cond",
        "context",
        "cross_attention_states",
        "ctx",
        "enc_out",
        "enc_output",
        "encoder_hidden_states",
        "encoder_out",
        "encoder_output",
        "encoder_outputs",
        "image_hidden_states",
        "key_value_states",
        "kv_states",
        "memory",
        "source",
        "src",
    }
)
"""Parameters of a ``forward`` that carry the other sequence of cross-attention."""


OWN: Final = "attncheck.capture"
"""Code of this package, which takes modules as arguments but is none of theirs."""


def innermost(names: Mapping[int, str]) -> tuple[nn.Module, str] | None:
    """Return the innermost running module among ``names`` (by id), with its path."""
    for module, _, _ in running_modules():
        if id(module) in names:
            return module, names[id(module)]
    return None


def is_running(module: nn.Module) -> bool:
    """Whether a method of this module is running in this thread."""
    return any(running is module for running, _, _ in running_modules())


def kind_of(module: nn.Module, name: str, n_query: int, n_key: int, *, causal: bool) -> Kind:
    """Tell self- from cross-attention by the arguments of the running ``forward``.

    Names and classes only decide the label, never whether attention is captured.
    """
    if getattr(module, "is_cross_attention", False) is True or _named_cross(module, name):
        return "cross"
    for running, code, local in running_modules():
        if running is not module or code.co_name != "forward":
            continue
        arguments = arguments_of(code, local)
        first = next(iter(arguments.values()), None)
        for parameter, given in arguments.items():
            if parameter in OTHER_SEQUENCE and given is not first and isinstance(given, Tensor):
                return "cross"
        break
    return "self" if causal or n_query == n_key else "unknown"


def _named_cross(module: nn.Module, name: str) -> bool:
    own = name.rpartition(".")[2].lower()
    return "cross" in type(module).__name__.lower() or own in {"crossattention", "cross_attn"}


def arguments_of(code: CodeType, local: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a running method but its first, as they are bound now; None: unbound.

    Args:
        code: Of the method.
        local: Its variables.
    """
    names = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
    return {name: local.get(name) for name in names}


def given_to(code: CodeType, local: Mapping[str, Any]) -> list[Any]:
    """List all that a running method was given but its first argument, also as ``*args``.

    Args:
        code: Of the method.
        local: Its variables.
    """
    given = list(arguments_of(code, local).values())
    rest = code.co_argcount + code.co_kwonlyargcount
    if code.co_flags & CO_VARARGS:
        given += local.get(code.co_varnames[rest], ())
        rest += 1
    if code.co_flags & CO_VARKEYWORDS:
        given += dict(local.get(code.co_varnames[rest], {})).values()
    return given


def running_modules() -> Iterator[tuple[nn.Module, CodeType, Mapping[str, Any]]]:
    """Yield modules whose methods are running, innermost first, with the methods' variables."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_argcount and not frame.f_globals.get("__name__", "").startswith(OWN):
            local = frame.f_locals  # made anew whenever it is asked for
            first: Any = local.get(code.co_varnames[0])
            if isinstance(first, nn.Module):
                yield first, code, local
        frame = frame.f_back
