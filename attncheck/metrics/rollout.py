"""`attention_rollout`: attention from the last layer down to the input, by matrix product."""

from __future__ import annotations

from typing import Any, Final, Literal

import torch
from torch import Tensor

from attncheck.attention import AttentionLike, LayerAttention, as_attention
from attncheck.attention.arguments import flag, number_within

__all__ = ["HeadFusion", "attention_rollout", "mixed_layers"]

HeadFusion = Literal["mean", "max", "min"]
"""How the heads of a layer become one matrix."""

FUSIONS: Final = ("mean", "max", "min")


def attention_rollout(
    attention: AttentionLike,
    *,
    residual: float = 0.5,
    head_fusion: HeadFusion = "mean",
    chance: bool = False,
    mask: Any = None,
    causal: bool | None = None,
) -> Tensor:
    """Multiply attention through the layers: how much of each input a position holds at the end.

    Abnar & Zuidema 2020, sec. 3: with ``A_l = 0.5 W_l + 0.5 I``, the weights of the
    heads averaged and the residual connection given half, ``R_l = A_l R_(l-1)``. Rollout has a
    chance level that isn't flat: through uniform causal layers it runs to the first token, with
    depth all of it. Set ``chance=True`` for that level and read the two side by side.

    Args:
        attention: Attention of all layers, first layer first, in any form that `as_attention`
            takes. For the rollout up to a lower layer pass fewer layers.
        residual: Share of the residual connection, 0 to 1.
        head_fusion: ``"mean"`` as in the paper; ``"max"`` or ``"min"`` over heads.
        chance: Put uniform attention over the visible keys in place of every layer.
        mask: Which keys are visible, see `as_visible`. Default: what the maps carry.
        causal: Whether queries see no later key. Default: as `as_attention` finds it.

    Returns:
        ``(batch, query, key)``, float64; rows sum to 1. A row of padding keeps its own position.

    Raises:
        TypeError: An option is of another kind.
        ValueError: A layer is not square, or is cross-attention; an option is out of range.

    Example:
        >>> causal = torch.ones(3, 3).tril() / torch.arange(1, 4)[:, None]
        >>> attention_rollout([causal] * 2)[0, 1]
        tensor([0.4375, 0.5625, 0.0000], dtype=torch.float64)
    """
    mixed = mixed_layers(
        attention,
        residual=residual,
        head_fusion=head_fusion,
        chance=chance,
        mask=mask,
        causal=causal,
        caller="attention_rollout",
    )
    rolled = mixed[0]
    for layer in mixed[1:]:
        rolled = layer @ rolled
    return rolled


def mixed_layers(
    attention: AttentionLike,
    *,
    residual: float,
    head_fusion: HeadFusion,
    chance: bool,
    mask: Any,
    causal: bool | None,
    caller: str,
) -> list[Tensor]:
    """Return each layer as one ``(batch, query, key)`` matrix with the residual mixed in."""
    residual = number_within(residual, "residual", 0, 1, "a share")
    chance = flag(chance, "chance")
    if not isinstance(head_fusion, str) or head_fusion not in FUSIONS:
        raise ValueError(f"head_fusion: {head_fusion!r}; expected one of {', '.join(FUSIONS)}")
    layers = as_attention(attention, mask=mask, causal=causal).layers
    _require_stack(layers, caller)
    return [_mix(layer, residual, head_fusion, chance) for layer in layers]


def _require_stack(layers: tuple[LayerAttention, ...], caller: str) -> None:
    for layer in layers:
        if layer.kind == "cross" or layer.n_query != layer.n_key:
            what = "cross-attention" if layer.kind == "cross" else "not square"
            raise ValueError(
                f"attention: {layer.name} is {what}, (query, key) = ({layer.n_query}, "
                f"{layer.n_key}); {caller} follows one sequence through self-attention layers: "
                "pass those alone, without a key-value cache"
            )
    shapes = {(layer.batch, layer.n_key) for layer in layers}
    if len(shapes) > 1:
        raise ValueError(
            f"attention: layers differ in (batch, key): {', '.join(map(str, sorted(shapes)))}; "
            f"{caller} needs one sequence length throughout"
        )


def _mix(layer: LayerAttention, residual: float, head_fusion: HeadFusion, chance: bool) -> Tensor:
    visible, valid = layer.visible(), layer.valid_rows()
    weights = visible.expand(layer.weights.shape) if chance else layer.weights.detach()
    weights = weights.double().masked_fill(~(visible & valid[..., None]), 0)
    if chance:
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(1)
    if head_fusion == "mean":
        fused = weights.mean(1)
    else:
        fused = weights.amax(1) if head_fusion == "max" else weights.amin(1)
    eye = torch.eye(layer.n_key, dtype=fused.dtype, device=fused.device)
    mixed = (1 - residual) * fused + residual * eye
    # A row that holds nothing, padding without a residual, stays where it is.
    total = mixed.sum(-1, keepdim=True)
    return torch.where(total > 0, mixed / total.masked_fill(total == 0, 1), eye)
