"""`profile_model`: measures of every head, with never more than one layer's weights in memory."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from attncheck.attention import LayerAttention, head_name
from attncheck.attention.tokens import as_tokens
from attncheck.capture.extractor import AttentionExtractor
from attncheck.evaluate import profile_layer
from attncheck.profile import HeadProfile, LayerProfile

__all__ = ["measure_call", "not_finite_warning", "profile_model"]


def profile_model(model: nn.Module, *args: Any, tokens: Any = None, **kwargs: Any) -> HeadProfile:
    """Call a model once and profile every head of every attention layer.

    Each layer is measured on the model's device as soon as it is captured, and dropped: the
    largest thing held is one layer's ``(batch, head, query, key)`` weights. The model runs in eval
    mode without gradients, in the backend it is set to.

    Args:
        model: Any module that `AttentionExtractor` captures.
        args: For the model.
        tokens: Strings or ids, one per key, for the token patterns (induction, duplicate token,
            delimiter). Default: the ``input_ids`` of the call. Layers over a sequence of another
            length, such as a decoder beside an encoder, do without.
        kwargs: For the model.

    Warns:
        UserWarning: Weights were NaN or infinite; see `HeadProfile.not_finite`.

    Raises:
        CaptureError: Attention ran that cannot be captured faithfully, or none did.
        ValueError: ``tokens`` fit no layer.

    Example:
        >>> import torch
        >>> encoder = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=8, batch_first=True)
        >>> profile = profile_model(encoder, torch.randn(1, 16, 8))
        >>> profile["normalized_entropy"].shape  # (layer, head)
        (1, 2)
    """
    profile = measure_call(model, args, kwargs, tokens)
    if profile.not_finite:
        warnings.warn(not_finite_warning(profile), stacklevel=2)
    return profile


def measure_call(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], tokens: Any
) -> HeadProfile:
    """Call a model once; see `profile_model`."""
    profiles: list[LayerProfile] = []
    unfit: list[ValueError] = []

    def measure(layer: LayerAttention) -> None:
        held = extractor.tokens if tokens is None else tokens
        try:
            fitting = None if layer.kind == "cross" else as_tokens(held, [layer])
        except ValueError as error:
            fitting = None
            unfit.append(error)
        profiles.append(profile_layer(layer, fitting))

    extractor = AttentionExtractor(model, device=None, on_layer=measure)
    extractor.watch(*args, **kwargs)
    if tokens is not None and unfit and len(unfit) == sum(p.kind != "cross" for p in profiles):
        raise unfit[0]
    return HeadProfile(profiles)


def not_finite_warning(profile: HeadProfile) -> str:
    """Say which heads had NaN or infinite weights."""
    broken = profile.not_finite
    return (
        f"NaN or infinite attention weights in {len(broken)} of {len(profile.heads())} heads, "
        f"first {broken[0]} ({_layer_of(profile, broken[0])}): their measures are no numbers"
    )


def _layer_of(profile: HeadProfile, head: str) -> str:
    """Name of the layer that a head belongs to."""
    return next(
        layer.name
        for layer in profile.layers
        if head in (head_name(layer.index, number) for number in layer.heads)
    )
