"""`profile_model`: measures of every head, with never more than one layer's weights in memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from attncheck.capture.call import Kind
from attncheck.capture.extractor import AttentionExtractor
from attncheck.capture.profiler import Evaluator, Profiler
from attncheck.evaluate import profile_layer
from attncheck.profile import HeadProfile, LayerProfile

__all__ = ["measure_call", "profile_model"]


def profile_model(
    model: nn.Module,
    *args: Any,
    tokens: Any = None,
    evaluator: Evaluator = profile_layer,
    kinds: Mapping[str, Kind] | None = None,
    also: Collection[str] = (),
    **kwargs: Any,
) -> HeadProfile:
    """Call a model once and profile every head of every attention layer.

    Each layer is measured on the model's device as soon as it is captured, and dropped. Where its
    backend got query and key, they are all that is read, a block of rows at a time, and no weights
    are ever held: memory grows with the length, not with its square. Where a model makes weights
    itself, the largest thing held is one layer's ``(batch, head, query, key)``.
    ``profile.evaluators`` says which layer was which. The model runs in eval mode without
    gradients, in the backend it is set to.

    Args:
        model: Any module that `AttentionExtractor` captures.
        args: For the model.
        tokens: Strings or ids, one per key, for the token patterns (induction, duplicate token,
            delimiter). Default: the ``input_ids`` of the call. Layers over a sequence of another
            length, such as a decoder beside an encoder, do without.
        evaluator: Measures a layer, ``(layer, tokens) -> LayerProfile``. One that reads
            ``layer.query_key``, see `QueryKey`, needs no weights, and none are made.
        kinds: ``"self"``, ``"cross"`` or ``"unknown"`` for layers where the capture cannot tell, by
            name or pattern: cross-attention of one's own over a sequence that happens to be as long
            as its queries is taken for self-attention. Default: as captured.
        also: Measures to add that are left out because they sort every row: ``"gini"``. For them
            the weights of each layer are made. An evaluator of one's own gets it by name.
        kwargs: For the model.

    Warns:
        UserWarning: Weights were NaN or infinite; see `HeadProfile.not_finite`.

    Raises:
        CaptureError: Attention ran that cannot be captured faithfully, or none did.
        TypeError: ``kinds`` is no mapping, or ``evaluator`` no function that returns a
            `LayerProfile`.
        ValueError: ``tokens`` fit no layer, ``kinds`` names none or holds another word, ``also``
            names no measure, or a layer has no sequences, heads, queries or keys.

    Example:
        >>> import torch
        >>> encoder = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=8, batch_first=True)
        >>> profile = profile_model(encoder, torch.randn(1, 16, 8))
        >>> profile["normalized_entropy"].shape  # (layer, head)
        (1, 2)
    """
    return measure_call(model, args, kwargs, tokens, evaluator, kinds, also)


def measure_call(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    tokens: Any,
    evaluator: Callable[..., LayerProfile] = profile_layer,
    kinds: Mapping[str, Kind] | None = None,
    also: Collection[str] = (),
) -> HeadProfile:
    """Call a model once; see `profile_model`."""
    if also:
        evaluator = partial(evaluator, also=also)
    profiler = Profiler(evaluator, tokens, kinds)
    extractor = AttentionExtractor(
        model,
        device=None,
        store="profile",
        evaluator=evaluator,
        on_layer=lambda layer: profiler.take(layer, extractor.tokens_of(layer)),
    )
    extractor.watch(*args, **kwargs)
    return profiler.profile()
