"""The two sides of a comparison: a saved profile, saved maps, or a model run on the inputs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from attncheck.attention import AttentionMaps
from attncheck.attention.tokens import as_tokens
from attncheck.capture import AttentionExtractor
from attncheck.cli.problem import CommandError, described
from attncheck.cli.subject import Subject, call_model
from attncheck.errors import CaptureError
from attncheck.evaluate import profile_attention
from attncheck.profile import HeadProfile

__all__ = [
    "Setting",
    "Side",
    "into_model",
    "is_profile",
    "is_state",
    "run_side",
    "saved_side",
]

KERNELS: Final = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
"""What torch calls the kernels of `attncheck.cli.parsers.compare`."""


@dataclass(frozen=True)
class Setting:
    """How a model is to run: dtype and backend, empty for as it is."""

    dtype: str = ""
    backend: str = ""

    def __str__(self) -> str:
        return "".join(f", {word}" for word in (self.dtype, self.backend) if word)


@dataclass
class Side:
    """One side, measured.

    Attributes:
        name: What to call it.
        profile: Measures of its heads.
        dtypes: Of the weights and of the model, where there is one.
        maps: The weights, on the CPU; None for a saved profile.
        tokens: Of each sequence, where known.
        note: What a reader should know about the prompt.
    """

    name: str
    profile: HeadProfile
    dtypes: tuple[str, ...]
    maps: AttentionMaps | None = None
    tokens: list[list[str | int]] | None = None
    note: str = ""


def saved_side(name: str) -> Side | None:
    """Read a saved profile (``.json``) or saved maps (``.safetensors``); None: neither.

    Raises:
        CommandError: Such a file, but damaged or of another kind.
    """
    path = Path(name)
    if path.suffix not in (".json", ".safetensors") or not path.is_file():
        return None
    try:
        if path.suffix == ".json":
            profile = HeadProfile.load(path)
            return Side(name, profile, _dtypes(profile))
        maps = AttentionMaps.load(path)
    except (ValueError, OSError) as error:
        hint = "" if path.suffix == ".json" else "; a checkpoint needs --into MODEL"
        raise CommandError(str(error).removeprefix("path: ") + hint) from None
    return _side(name, maps, ())


def run_side(
    name: str, subject: Subject, setting: Setting, layers: list[int | str] | None = None
) -> Side:
    """Run a model as a setting says, and keep its attention.

    The model given is left as it is where the setting asks for another dtype.

    Raises:
        CommandError: It fails, cannot run that way, or cannot be captured.
    """
    if setting.dtype:
        subject = _converted(subject, getattr(torch, setting.dtype))
    try:
        extractor = AttentionExtractor(subject.model, layers)
    except ValueError as error:
        raise CommandError(f"--{error}") from None
    try:
        with _backend(subject.model, setting.backend), extractor:
            call_model(subject)
        maps = extractor.maps
    except CaptureError as error:
        raise CommandError(f"{name}: {error}") from error
    except ValueError as error:
        raise CommandError(f"--{error}") from error
    own = next((p.dtype for p in subject.model.parameters() if p.is_floating_point()), None)
    dtypes = () if own is None else (str(own).removeprefix("torch."),)
    side = _side(
        f"{name}{setting}", AttentionMaps(maps.layers, tokens=_fitting(subject, maps)), dtypes
    )
    side.tokens, side.note = subject.tokens, subject.note
    return side


def into_model(subject: Subject, path: Path) -> Subject:
    """Load a checkpoint, a state dict in ``.safetensors`` or ``.pt``, into a copy of the model.

    Raises:
        CommandError: It cannot be read, or does not fit.
    """
    model = deepcopy(subject.model)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except Exception as error:
        raise CommandError(f"{path}: cannot be loaded into the model: {described(error)}") from None
    return replace(subject, model=model)


def is_state(path: Path) -> bool:
    """Whether a file looks like the weights of a model."""
    return path.is_file() and path.suffix in (".safetensors", ".pt", ".pth", ".bin")


def _side(name: str, maps: AttentionMaps, dtypes: tuple[str, ...]) -> Side:
    try:
        profile = profile_attention(maps)
    except ValueError as error:
        raise CommandError(f"{name}: {error}") from None
    tokens = None if maps.tokens is None else [list(row) for row in maps.tokens]
    return Side(name, profile, (*_dtypes(profile), *dtypes), maps, tokens)


def _dtypes(profile: HeadProfile) -> tuple[str, ...]:
    return tuple(dict.fromkeys(layer.dtype for layer in profile.layers))


def _fitting(subject: Subject, maps: AttentionMaps) -> Any:
    """The prompt's tokens, where they are one per key."""
    try:
        return as_tokens(subject.tokens, maps.layers)
    except ValueError:
        return None


def _converted(subject: Subject, dtype: torch.dtype) -> Subject:
    """A copy of the model, and the inputs, in another dtype."""

    def convert(value: Any) -> Any:
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if floating else value

    return replace(
        subject,
        model=deepcopy(subject.model).to(dtype),
        args=tuple(convert(value) for value in subject.args),
        kwargs={name: convert(value) for name, value in subject.kwargs.items()},
    )


@contextmanager
def _backend(model: nn.Module, name: str) -> Iterator[None]:
    """Run in one backend, and set back what was changed."""
    with ExitStack() as stack:
        if name in KERNELS:
            stack.enter_context(sdpa_kernel([KERNELS[name]]))
        elif name:
            before = getattr(getattr(model, "config", None), "_attn_implementation", None)
            setter = getattr(model, "set_attn_implementation", None)
            if before is None or setter is None:
                raise CommandError(
                    f"backend {name}: only Hugging Face models know it; of torch's kernels there "
                    f"are {', '.join(KERNELS)}"
                )
            setter(name)
            stack.callback(setter, before)
        yield


def is_profile(path: Path) -> bool:
    """Whether a JSON file says that it is a saved profile."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(held, dict) and str(held.get("schema", "")).startswith("attncheck.profile.")
