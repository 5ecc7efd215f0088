"""The attention that a model under test computes, captured once for all promises."""

from __future__ import annotations

import warnings

from attncheck.attention import LayerAttention
from attncheck.capture import AttentionExtractor
from attncheck.model_checks.running import random_state
from attncheck.model_checks.subject import ModelSubject

__all__ = ["attention_of"]


def attention_of(subject: ModelSubject, *, strict: bool = False) -> list[LayerAttention]:
    """Attention that the model computes, one entry for each module.

    Args:
        subject: The model and its inputs.
        strict: Whether all of it must be captured, and faithfully.

    Raises:
        CaptureError: No attention was found, or not all of it where ``strict``.
    """
    key = f"layers {strict}"
    if key not in subject.measured:
        with warnings.catch_warnings(), random_state(0, subject.device):
            warnings.simplefilter("ignore")
            extractor = AttentionExtractor(subject.model, strict=strict)
            found = extractor.get_attention(**subject.inputs).layers
        subject.measured[key] = list({layer.name: layer for layer in found}.values())
    layers: list[LayerAttention] = subject.measured[key]
    return layers
