"""What a scan looks at: a model, the inputs it is called with, and their tokens."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from attncheck.capture import load_huggingface
from attncheck.cli.names import is_factory, require_there
from attncheck.cli.problem import CommandError, described
from attncheck.cli.tokenizer import Tokenizer
from attncheck.errors import CaptureError
from attncheck.model_checks.huggingface import huggingface_facts, make_inputs
from attncheck.models import encode, load_tiny_model, repeated_tokens, tokens_of

__all__ = ["Request", "Subject", "call_model", "load_subject"]

MOST_UNKNOWN: Final = 5
"""Ids that a message lists."""

TINY_NAME: Final = "attncheck's trained 2-layer model"
DEFAULT_TEXT: Final = "The quick brown fox jumps over the lazy dog. " * 2
"""Said twice, so that heads which look for repetitions have something to find."""


@dataclass(frozen=True)
class Request:
    """What the user asked for: a model by name, and a prompt as text or token ids.

    With ``any_prompt`` the prompt does not matter: where it needs a tokenizer and the model has
    none, the model is called with something it takes.
    """

    model: str | None = None
    text: str | None = None
    ids: tuple[int, ...] | None = None
    max_tokens: int | None = None
    device: str = "cpu"
    any_prompt: bool = False


@dataclass
class Subject:
    """A model ready to be called.

    Attributes:
        name: What to call it.
        model: The module, in evaluation mode, on its device.
        args: Positional inputs.
        kwargs: Inputs by name.
        tokens: One list per sequence, one token per position; None where nobody knows them.
        note: What a reader should know about the prompt.
        kind: What the model promises, where that is known.
    """

    name: str
    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    tokens: list[list[str | int]] | None = None
    note: str = ""
    kind: str | None = None


def load_subject(request: Request) -> Subject:
    """Load what a request names.

    Raises:
        CommandError: It cannot be loaded, or the prompt does not fit it; says what to do.
    """
    device = _device(request.device)
    if request.text is not None and not request.text.strip():
        raise CommandError("--text: is empty")
    if request.model is None:
        subject = _tiny(request)
    elif is_factory(request.model):
        subject = _from_factory(request.model, request)
    else:
        subject = _from_huggingface(request.model, request)
    subject.model.to(device).eval()
    subject.args = tuple(_moved(value, device) for value in subject.args)
    subject.kwargs = {name: _moved(value, device) for name, value in subject.kwargs.items()}
    return subject


def call_model(subject: Subject) -> None:
    """Run the model; what it raises is told apart from what capturing it raises."""
    try:
        with torch.no_grad():
            subject.model(*subject.args, **subject.kwargs)
    except (CaptureError, CommandError):
        raise
    except Exception as error:
        raise CommandError(
            f"{subject.name} failed on this prompt: {described(error, place=True)}. A factory "
            "that returns (model, inputs) can pass whatever the model needs"
        ) from error


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CommandError(f"--device {name}: not available here ({line})") from None
    return device


def _tiny(request: Request) -> Subject:
    model = load_tiny_model()
    try:
        ids = encode(request.text) if request.text is not None else repeated_tokens(period=12)
    except ValueError as error:
        raise CommandError(f"--{error}; this is a model of letters") from None
    if request.ids is not None:
        ids = torch.tensor([request.ids])
    ids, note = _fitted(ids, model.max_length, request)
    _require_vocabulary(ids, model.n_tokens)
    tokens: list[list[str | int]] = [list(row) for row in tokens_of(ids)]
    return Subject(TINY_NAME, model, (ids,), tokens=tokens, note=note, kind="decoder")


def _from_huggingface(name: str, request: Request) -> Subject:
    require_there(name)
    tokenizer = Tokenizer(name)
    try:
        if request.ids is None and not request.any_prompt:
            tokenizer.require()
        model, _ = load_huggingface(name, tokenizer)
    except CommandError:
        raise
    except (ImportError, OSError) as error:
        hint = "" if ":" in name or not Path(f"{name}.py").exists() else _FACTORY_HINT
        told = " ".join(str(error).split()).removeprefix("model_name: ")
        raise CommandError(told + hint) from None
    except Exception as error:
        raise CommandError(f"cannot load {name!r}: {described(error)}") from None
    if request.ids is None and request.any_prompt and not tokenizer.found:
        return _with_made_inputs(name, model)
    if request.ids is not None:
        ids = torch.tensor([request.ids])
    else:
        ids = tokenizer.ids(DEFAULT_TEXT.strip() if request.text is None else request.text)
    limits = (tokenizer.longest, getattr(model.config, "max_position_embeddings", None))
    longest = min((int(limit) for limit in limits if limit and limit > 0), default=None)
    ids, note = _fitted(ids, longest, request)
    _require_vocabulary(ids, getattr(model.config, "vocab_size", None))
    tokens = tokenizer.strings(ids[0].tolist())
    return Subject(name, model, kwargs={"input_ids": ids}, tokens=[tokens], note=note)


def _with_made_inputs(name: str, model: nn.Module) -> Subject:
    """Call a model that has no tokenizer with small random inputs."""
    try:
        inputs = make_inputs(model, huggingface_facts(model))
    except ValueError as error:
        raise CommandError(f"{name}: {error}") from None
    return Subject(name, model, kwargs=inputs, tokens=_ids_in(inputs.get("input_ids")))


_FACTORY_HINT: Final = ". To scan a model of your own, name a factory: package.module:function"


def _from_factory(name: str, request: Request) -> Subject:
    if request.text is not None:
        raise CommandError(
            f"--text: {name} has no tokenizer; pass --tokens with ids, or let the factory return "
            "(model, inputs)"
        )
    made = _call_factory(name)
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise CommandError(
            f"{name}: returned {type(model).__name__}; expected a torch.nn.Module, or a tuple "
            "(model, inputs)"
        )
    if request.ids is not None:
        ids, note = _fitted(torch.tensor([request.ids]), None, request)
        return Subject(name, model, (ids,), tokens=_ids_in(ids), note=note)
    if inputs is None:
        raise CommandError(
            f"{name}: returned a model without inputs; pass --tokens '1 2 3' if it takes token "
            "ids, or return (model, inputs)"
        )
    if isinstance(inputs, Mapping):
        return Subject(name, model, kwargs=dict(inputs), tokens=_ids_in(inputs.get("input_ids")))
    args = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    return Subject(name, model, args, tokens=_ids_in(args[0] if args else None))


def _call_factory(name: str) -> Any:
    """Import and call ``package.module:function``; the working directory is on the path."""
    module_name, _, attribute = name.partition(":")
    if module_name.endswith(".py"):
        raise CommandError(
            f"{name}: names a file; name the module: {module_name.removesuffix('.py')}:{attribute}"
        )
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise CommandError(
            f"cannot import {module_name}: {described(error, place=True)}"
        ) from error
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, Callable):  # type: ignore[arg-type]
        raise CommandError(f"{module_name} has no function {attribute!r}")
    try:
        return found()
    except Exception as error:
        raise CommandError(f"{name} raised {described(error, place=True)}") from error


def _fitted(ids: Tensor, longest: int | None, request: Request) -> tuple[Tensor, str]:
    """Cut a prompt to ``--max-tokens``; refuse one that the model has no positions for."""
    length, wanted = ids.shape[1], request.max_tokens
    if not length:
        raise CommandError("--text: has no tokens")
    note = ""
    if wanted is not None and wanted < length:
        ids, note = ids[:, :wanted], f"cut from {length} to {wanted} tokens"
    if longest is not None and ids.shape[1] > longest:
        raise CommandError(
            f"--{'text' if request.ids is None else 'tokens'}: {ids.shape[1]} tokens, and the "
            f"model takes {longest}; shorten it, or pass --max-tokens {longest}"
        )
    return ids, note


def _require_vocabulary(ids: Tensor, size: int | None) -> None:
    if size is None:
        return
    unknown = ids[(ids < 0) | (ids >= size)].tolist()
    if unknown:
        listed = ", ".join(str(token) for token in dict.fromkeys(unknown[:MOST_UNKNOWN]))
        raise CommandError(f"--tokens: no {listed}; ids of this model are 0 to {size - 1}")


def _ids_in(value: Any) -> list[list[str | int]] | None:
    """Token ids of each sequence, where an input looks like token ids."""
    if isinstance(value, Tensor) and value.ndim == 2 and not value.is_floating_point():
        return [list(row) for row in value.tolist()]
    return None


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
