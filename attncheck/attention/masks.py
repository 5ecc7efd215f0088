"""One meaning for every mask: bool, True where the key is visible, ready to broadcast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["as_visible"]

HIDDEN_BELOW = -1e4
"""An additive mask hides a key at or below this: -inf, ``finfo.min`` and the old -10000."""


def as_visible(mask: Any, shape: torch.Size | tuple[int, ...], *, name: str = "mask") -> Tensor:
    """Turn a mask into bool, True = visible, four-dimensional and broadcastable to ``shape``.

    Args:
        mask: Bool (True = may be seen, as in ``scaled_dot_product_attention``), integer
            (1 = token, 0 = padding, as Hugging Face tokenizers give) or floating and additive
            (0 = visible, ``-inf`` or a very negative number = hidden). Its shape may be
            ``(key,)``, ``(batch, key)``, ``(query, key)``, ``(batch, query, key)`` or
            ``(batch or 1, head or 1, query or 1, key)``.
        shape: ``(batch, head, query, key)`` of the weights.
        name: What the message calls the mask.

    Raises:
        TypeError: It is no tensor, array or nested list of numbers.
        ValueError: The shape fits nowhere or fits twice, or the values are of no known form.

    Example:
        >>> as_visible(torch.tensor([[1, 1, 0]]), (1, 2, 3, 3)).tolist()
        [[[[True, True, False]]]]
    """
    try:
        tensor = torch.as_tensor(mask).detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"{name}: cannot read a mask from {type(mask).__name__}; expected a bool, integer or "
            "floating tensor or array"
        ) from None
    return _four_dimensional(_as_bool(tensor, name), tuple(shape), tensor, name)


def _as_bool(mask: Tensor, name: str) -> Tensor:
    if mask.dtype == torch.bool:
        return mask
    if not mask.is_floating_point():
        if mask.numel() and not ((mask == 0) | (mask == 1)).all():
            raise ValueError(
                f"{name}: an integer mask holds 1 (visible) and 0 (hidden); got values from "
                f"{int(mask.min())} to {int(mask.max())}. Did you pass token ids?"
            )
        return mask == 1
    if torch.isnan(mask).any():
        raise ValueError(f"{name}: has NaN")
    if (mask == 1).any() and ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            f"{name}: a floating mask is added to the scores (0 = visible, -inf = hidden), but "
            f"this one holds 0 and 1. Pass {name}.bool() if 1 means visible."
        )
    return mask > HIDDEN_BELOW


def _four_dimensional(mask: Tensor, shape: tuple[int, ...], given: Tensor, name: str) -> Tensor:
    batch, heads, n_query, n_key = shape
    if mask.ndim == 2:
        as_padding = mask.shape == (batch, n_key)
        as_square = mask.shape == (n_query, n_key)
        if as_padding and as_square and n_query > 1 and not _is_integer(given):
            raise ValueError(
                f"{name}: shape {tuple(mask.shape)} fits (batch, key) and (query, key). Say which: "
                f"{name}[:, None, None, :] for padding, {name}[None, None] for (query, key)."
            )
        views = [mask[:, None, None, :]] if as_padding else [mask[None, None]]
    elif mask.ndim == 1:
        views = [mask[None, None, None]]
    elif mask.ndim == 3:
        views = [mask[:, None]]
    else:
        views = [mask]
    view = views[0]
    fits = view.ndim == 4 and all(
        have in (1, want) for have, want in zip(view.shape, shape, strict=True)
    )
    if not fits or (view.shape[-1] != n_key):
        raise ValueError(
            f"{name}: shape {tuple(given.shape)} fits no attention of shape (batch, head, query, "
            f"key) = {shape}; expected (key,), (batch, key), (query, key), (batch, query, key) or "
            f"({batch} or 1, {heads} or 1, {n_query} or 1, {n_key})"
        )
    return view


def _is_integer(mask: Tensor) -> bool:
    return mask.dtype != torch.bool and not mask.is_floating_point()
