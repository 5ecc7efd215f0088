"""`nn.MultiheadAttention` in all its modes, and the transformer modules built on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.capture.plain_torch.case import BATCH, HEADS, LENGTH, WIDTH, Case, inputs
from tests.capture.reference import softmax_rows

FIVE = 5
FUTURE = torch.ones(LENGTH, LENGTH).triu(1).bool()
PADDING = torch.tensor([[False] * LENGTH, [False] * 4 + [True] * 2])


def weights_of(
    mha: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    hidden: np.ndarray | None = None,
    padding: Tensor | None = None,
) -> np.ndarray:
    """Weights ``(batch, head, query, key)`` in float64, from inputs with the batch first."""
    with torch.no_grad():
        held = mha.in_proj_weight
        of_query, of_key = (
            (mha.q_proj_weight, mha.k_proj_weight) if held is None else held.chunk(3)[:2]
        )
        shift = mha.in_proj_bias
        q = query.double() @ of_query.double().T + shift[:WIDTH].double()
        k = key.double() @ of_key.double().T + shift[WIDTH : 2 * WIDTH].double()
        if mha.bias_k is not None:
            k = torch.cat([k, mha.bias_k.double().expand(len(k), 1, WIDTH)], dim=1)
        if mha.add_zero_attn:
            k = torch.cat([k, torch.zeros(len(k), 1, WIDTH, dtype=torch.float64)], dim=1)
        q, k = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2).numpy() for t in (q, k))
    scores = np.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(WIDTH // HEADS)
    extra = scores.shape[-1] - key.shape[1]
    if hidden is not None:
        scores = scores + np.pad(hidden, [*[(0, 0)] * (hidden.ndim - 1), (0, extra)])
    if padding is not None:
        blind = np.pad(padding.numpy(), [(0, 0), (0, extra)])
        scores = np.where(blind[:, None, None], -np.inf, scores)
    return softmax_rows(scores)


def minus(hidden: Tensor) -> np.ndarray:
    """Additive form of a bool mask that is True where a key is hidden."""
    return np.where(hidden.numpy(), -np.inf, 0.0)


def attention(
    *,
    lengths: tuple[int, int] = (LENGTH, LENGTH),
    sizes: tuple[int, int] = (WIDTH, WIDTH),
    hidden: Tensor | None = None,
    padding: Tensor | None = None,
    train: bool = False,
    cross: bool = False,
    unbatched: bool = False,
    build: dict[str, Any] | None = None,
    **options: Any,
) -> Case:
    """Make a case of one `nn.MultiheadAttention`."""
    held = {"batch_first": True, **(build or {})}

    def make() -> tuple[nn.Module, tuple[Any, ...]]:
        torch.manual_seed(0)
        mha = nn.MultiheadAttention(WIDTH, HEADS, kdim=sizes[0], vdim=sizes[1], **held)
        nn.init.normal_(mha.in_proj_bias)
        query = torch.randn(BATCH, lengths[0], WIDTH)
        key = query if not cross else torch.randn(BATCH, lengths[1], sizes[0])
        value = key if sizes[0] == sizes[1] else torch.randn(BATCH, lengths[1], sizes[1])
        if unbatched:
            query, key, value = query[0], key[0], value[0]
        elif not held["batch_first"]:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        given = {**options, "key_padding_mask": padding, "attn_mask": hidden}
        return _With(mha, given).train(train), (query, key, value)

    def expected(model: nn.Module, args: tuple[Any, ...]) -> list[np.ndarray]:
        assert isinstance(model, _With)
        query, key = args[:2]
        if unbatched:
            query, key = query[None], key[None]
        elif not held["batch_first"]:
            query, key = query.transpose(0, 1), key.transpose(0, 1)
        mask = None
        if hidden is not None:
            mask = minus(hidden) if hidden.dtype == torch.bool else hidden.double().numpy()
            mask = mask.reshape(-1, HEADS, *mask.shape[1:]) if mask.ndim == 3 else mask
        return [weights_of(model.mha, query, key, mask, padding)]

    return Case(make, expected, train=train)


class _With(nn.Module):
    """Attention with fixed options."""

    def __init__(self, mha: nn.MultiheadAttention, given: dict[str, Any]) -> None:
        super().__init__()
        self.mha = mha
        self.given = given

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Any:
        return self.mha(query, key, value, **self.given)


def stack(
    make_model: Callable[[], nn.Module],
    lengths: tuple[int, ...] = (LENGTH,),
    masks: tuple[np.ndarray | None, ...] = (None,) * 4,
    paddings: tuple[Tensor | None, ...] = (None,) * 4,
    *,
    train: bool = False,
    **options: Any,
) -> Case:
    """Make a case of a transformer module: its attentions in execution order.

    What each attention received is caught by a hook on a second, slow run of the same module.
    """

    def make() -> tuple[nn.Module, tuple[Any, ...]]:
        torch.manual_seed(0)
        return make_model().train(train), inputs(*lengths)

    def expected(model: nn.Module, args: tuple[Any, ...]) -> list[np.ndarray]:
        received: list[tuple[nn.Module, Tensor, Tensor]] = []
        attentions = [m for m in model.modules() if isinstance(m, nn.MultiheadAttention)]

        def note(module: nn.Module, given: Any, keywords: Any) -> None:
            received.append((module, given[0].detach(), given[1].detach()))

        handles = [m.register_forward_pre_hook(note, with_kwargs=True) for m in attentions]
        was = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.no_grad():
                model(*args, **options)
        finally:
            torch.backends.mha.set_fastpath_enabled(was)
            for handle in handles:
                handle.remove()
        return [
            weights_of(m, q, k, mask, padding)  # type: ignore[arg-type]
            for (m, q, k), mask, padding in zip(received, masks, paddings, strict=False)
        ]

    return Case(make, expected, options, train=train, atol=2e-6)


def encoder_layer(**options: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True, dropout=0.0, **options)


def encoder(**options: Any) -> nn.TransformerEncoder:
    return nn.TransformerEncoder(encoder_layer(**options), 2)


def decoder_layer() -> nn.TransformerDecoderLayer:
    return nn.TransformerDecoderLayer(WIDTH, HEADS, 32, batch_first=True, dropout=0.0)


def whole() -> nn.Transformer:
    return nn.Transformer(WIDTH, HEADS, 1, 1, 32, dropout=0.0, batch_first=True)


FUTURE_MINUS = minus(FUTURE)
MULTIHEAD: dict[str, Case] = {
    "fast path": attention(need_weights=False),
    "fast path with weights": attention(need_weights=True),
    "training": attention(train=True),
    "training without weights": attention(train=True, need_weights=False),
    "weights by head": attention(need_weights=True, average_attn_weights=False),
    "length first": attention(build={"batch_first": False}),
    "length first without weights": attention(build={"batch_first": False}, need_weights=False),
    "unbatched": attention(unbatched=True),
    "bool mask": attention(hidden=FUTURE),
    "bool mask without weights": attention(hidden=FUTURE, need_weights=False),
    "additive mask": attention(hidden=torch.zeros(LENGTH, LENGTH).masked_fill(FUTURE, -math.inf)),
    "mask by head": attention(hidden=FUTURE.expand(BATCH * HEADS, -1, -1).clone()),
    "padding": attention(padding=PADDING),
    "padding without weights": attention(padding=PADDING, need_weights=False),
    "padding and mask": attention(padding=PADDING, hidden=FUTURE),
    "causal hint": attention(hidden=FUTURE, is_causal=True, need_weights=False),
    "causal hint with weights": attention(hidden=FUTURE, is_causal=True),
    "cross": attention(cross=True, lengths=(LENGTH, FIVE)),
    "key and value of other sizes": attention(cross=True, lengths=(LENGTH, FIVE), sizes=(12, 8)),
    "added bias": attention(build={"add_bias_kv": True}),
    "added zero": attention(build={"add_zero_attn": True}),
    "added bias and zero": attention(
        build={"add_bias_kv": True, "add_zero_attn": True}, hidden=FUTURE, padding=PADDING
    ),
    "dropout while training": attention(train=True, build={"dropout": 0.4}),
    "dropout without weights": attention(train=True, build={"dropout": 0.4}, need_weights=False),
}
STACKS: dict[str, Case] = {
    "encoder layer": stack(encoder_layer),
    "encoder layer, training": stack(encoder_layer, train=True),
    "encoder layer, norm first": stack(lambda: encoder_layer(norm_first=True)),
    "encoder": stack(encoder),
    "encoder, padding": stack(encoder, paddings=(PADDING,) * 2, src_key_padding_mask=PADDING),
    "encoder, causal": stack(encoder, masks=(FUTURE_MINUS,) * 2, mask=FUTURE, is_causal=True),
    "encoder, training with padding": stack(
        encoder, paddings=(PADDING,) * 2, train=True, src_key_padding_mask=PADDING
    ),
    "decoder layer": stack(decoder_layer, (LENGTH, FIVE)),
    "decoder layer, causal": stack(
        decoder_layer, (LENGTH, FIVE), masks=(FUTURE_MINUS, None), tgt_mask=FUTURE
    ),
    "decoder": stack(lambda: nn.TransformerDecoder(decoder_layer(), 2), (LENGTH, FIVE)),
    "whole transformer": stack(
        whole, (FIVE, LENGTH), masks=(None, FUTURE_MINUS, None), tgt_mask=FUTURE
    ),
}
