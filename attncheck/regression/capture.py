"""`Capture`: what a test hands over, opened: profiles of all runs, weights of the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from attncheck.attention import AttentionMaps, as_attention
from attncheck.evaluate import profile_attention
from attncheck.profile import HeadProfile
from attncheck.regression.environment import Environment, environment_of, input_hash
from attncheck.regression.record import HeadRecord, records_of

__all__ = ["MIN_RUNS", "Capture", "open_capture"]

MIN_RUNS: Final = 3
"""Fewer runs say nothing about their spread."""


@dataclass(frozen=True)
class Capture:
    """The attention of one check.

    Attributes:
        maps: Weights of the first run; None where a profile was given.
        records: One per head, means over runs.
        environment: Where it was made.
        input: Hash of the first run's input, where known.
        runs: Number of runs.
    """

    maps: AttentionMaps | None
    records: tuple[HeadRecord, ...]
    environment: Environment
    input: str | None
    runs: int


def open_capture(
    attention: Any,
    *,
    runs: Sequence[Any] | None = None,
    tokens: Any = None,
    mask: Any = None,
    causal: bool | None = None,
    device: torch.device | str | None = None,
    fallback: torch.device | str = "cpu",
) -> Capture:
    """Open what a test hands over.

    Args:
        attention: Attention in any form that `as_attention` takes, or a `HeadProfile`.
        runs: More of them, of the same heads on other seeds or prompts.
        tokens: Strings or ids, one per key. Default: what maps carry.
        mask: Which keys are visible, see `as_visible`. Default: what maps carry.
        causal: Whether queries see no later key. Default: as `as_attention` finds it.
        device: What the model ran on. Default: what a capture says, else where weights are.
        fallback: The same where nothing says it: for profiles and bare weights on the CPU.

    Raises:
        TypeError: ``attention`` is of no accepted kind.
        ValueError: Not attention, two runs only, runs of different heads, or ``device`` is none.
    """
    if runs is not None and not isinstance(runs, Sequence):
        raise TypeError(f"runs: got {type(runs).__name__}; expected a list of captures")
    given = [*([] if attention is None else [attention]), *(runs or ())]
    if not given:
        raise TypeError("attention: got nothing; expected attention weights or a HeadProfile")
    if runs is not None and len(given) < MIN_RUNS:
        raise ValueError(
            f"runs: {len(given)} captures in all; the spread needs at least {MIN_RUNS}"
        )
    first: AttentionMaps | None = None
    profiles = []
    for number, one in enumerate(given):
        if isinstance(one, HeadProfile):
            profiles.append(one)
            continue
        maps = as_attention(one, tokens=tokens, mask=mask, causal=causal)
        profiles.append(profile_attention(maps))
        first = maps if number == 0 else first
    return Capture(
        maps=first,
        records=records_of(profiles),
        environment=environment_of(profiles[0], _named(device or _device(first) or fallback)),
        input=input_hash(first),
        runs=len(profiles),
    )


def _named(device: Any) -> torch.device:
    try:
        return torch.device(device)
    except (TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"device: {device!r} is no device ({reason}); expected what the model ran on, such as "
            "'cuda:0', or None"
        ) from None


def _device(maps: AttentionMaps | None) -> str | None:
    """What a capture says of the device; weights on the CPU may have been moved there."""
    if maps is None:
        return None
    layer = maps.layers[0]
    held = str(layer.weights.device)
    return layer.model_device or (None if held == "cpu" else held)
