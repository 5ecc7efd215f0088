"""The ways of getting at a model's attention, each ready to be timed on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from attncheck.capture import AttentionExtractor, profile_model

__all__ = ["PLAIN", "Inputs", "Way", "ways_of"]

PLAIN: Final = "plain forward"
"""Name of the way that all others are compared to."""

Inputs = tuple[Sequence[Any], Mapping[str, Any]]
"""Positional and named arguments of a model."""


@dataclass(frozen=True)
class Way:
    """One way of running a model for its attention.

    Attributes:
        name: What to call it.
        run: Takes positional and named inputs.
        prepare: Sets the model's backend, untimed, before each run.
        holds_maps: Whether it holds the weights of all layers at once.
    """

    name: str
    run: Callable[[Sequence[Any], Mapping[str, Any]], object]
    prepare: Callable[[], object] = lambda: None
    holds_maps: bool = False


def ways_of(model: nn.Module) -> tuple[dict[str, Way], Callable[[], object]]:
    """Return the ways that fit a model, by name, and what puts its backend back.

    The plain forward; ``output_attentions`` in the eager backend, of transformers models that
    have one; the captured maps; and the profile. All but the second run in the model's own backend.

    Example:
        >>> from attncheck.models import load_tiny_model
        >>> list(ways_of(load_tiny_model())[0])
        ['plain forward', 'capture', 'profile']
    """
    restore, eager = _backends(model)
    extractor = AttentionExtractor(model, device=None)
    found = [Way(PLAIN, _without_gradients(model), restore)]
    if eager is not None:
        asking = _without_gradients(model, output_attentions=True)
        found.append(Way("eager output_attentions", asking, eager, holds_maps=True))

    def captured(args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
        return list(extractor.get_attention(*args, **kwargs))  # a layer is made when it is read

    found += [
        Way("capture", captured, restore, holds_maps=True),
        Way("profile", lambda a, k: profile_model(model, *a, **k), restore),
    ]
    return {way.name: way for way in found}, restore


def _without_gradients(model: nn.Module, **more: Any) -> Callable[..., object]:
    def run(args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
        with torch.no_grad():
            return model(*args, **kwargs, **more)

    return run


def _backends(model: nn.Module) -> tuple[Callable[[], object], Callable[[], object] | None]:
    """What sets the model's own backend, and its eager one if it has one."""
    config = getattr(model, "config", None)
    own = getattr(config, "_attn_implementation", None)
    switch = getattr(model, "set_attn_implementation", None)
    if not isinstance(own, str) or not callable(switch):
        return (lambda: None), None

    def to(backend: str) -> Callable[[], object]:
        return lambda: config._attn_implementation == backend or switch(backend)  # type: ignore[union-attr]

    return to(own), to("eager")
