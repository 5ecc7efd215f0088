"""A transformer with hand-set weights: six heads, six patterns, scores with closed forms."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ANALYTIC_HEADS", "AnalyticTransformer"]

ANALYTIC_HEADS: Final = MappingProxyType(
    {
        "L0H0": "previous_token",
        "L0H1": "duplicate_token",
        "L0H2": "diagonal",
        "L1H0": "induction",
        "L1H1": "uniform",
        "L1H2": "first_token",
    }
)
"""What each head of `AnalyticTransformer` does."""

HEADS_PER_LAYER: Final = 3


class HandSetAttention(nn.Module):
    """Causal attention by ``softmax(query @ key.T) @ value``; queries and keys are linear maps.

    Args:
        query: ``(head, stream, head width)``.
        key: ``(head, stream, head width)``.
        value: ``(stream, value width)``, the same for all heads.
        output: ``(head, value width, stream)``.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> None:
        super().__init__()
        for name, weights in (("query", query), ("key", key), ("value", value)):
            self.register_buffer(name, weights)
        self.register_buffer("output", output)

    def forward(self, stream: Tensor) -> Tensor:
        """Mix tokens: ``(batch, token, stream)`` in and out."""
        inputs = stream[:, None]
        query, key, value = inputs @ self.query, inputs @ self.key, inputs @ self.value
        scores = query @ key.mT
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        weights = torch.softmax(scores.masked_fill(future, -torch.inf), dim=-1)
        mixed = weights @ value.expand(-1, scores.shape[1], -1, -1)
        return (mixed @ self.output).sum(1)


class AnalyticTransformer(nn.Module):
    """Two attention layers that copy: previous token, then induction by K-composition.

    The residual stream holds, one-hot, the token and its position, and one slot per head, into
    which the head writes the tokens it attends to. No position carries any other information, so
    every weight is known: with sharpness ``b``, query ``i`` (row 0 is the start token) and
    ``[x]`` = 1 if x holds,

    ========  ==================  ====================================================
    head      pattern             score of key ``j``
    ========  ==================  ====================================================
    ``L0H0``  previous_token      ``b [j = i - 1]``
    ``L0H1``  duplicate_token     ``b [t_j = t_i] - 2 b [j = i] + b/2 [j = 0]``
    ``L0H2``  diagonal            ``b [j = i]``
    ``L1H0``  induction           ``b (what L0H0 wrote at j) . t_i + b/2 [j = 0]``
    ``L1H1``  uniform             ``0``
    ``L1H2``  first_token         ``b [j = 0]``
    ========  ==================  ====================================================

    so that, for instance, the previous token gets ``e^b / (e^b + i)``. Heads that look for a token
    rest on the start token where there is none. The logits are the slot of ``L1H0``: what it
    attends to is what it predicts. The construction is that of Elhage et al., "A Mathematical
    Framework for Transformer Circuits" (2021), and Olsson et al., arXiv 2209.11895.

    Args:
        sharpness: ``b``, in nats: how far the chosen key's score lies above the others'.
        n_tokens: Size of the vocabulary; id 0 is the start token.
        max_length: Longest sequence.
        dtype: Of weights and computation. Default float64.

    Example:
        >>> from attncheck.models import repeated_tokens
        >>> model, ids = AnalyticTransformer(sharpness=10), repeated_tokens(period=20)
        >>> bool((model(ids)[0, 21:-1].argmax(-1) == ids[0, 22:]).all())
        True
    """

    def __init__(
        self,
        sharpness: float = 10.0,
        *,
        n_tokens: int = 32,
        max_length: int = 64,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.sharpness, self.n_tokens, self.max_length = sharpness, n_tokens, max_length
        self.dtype = dtype
        self.attention = nn.ModuleList(
            HandSetAttention(*(part.to(dtype) for part in self._weights(layer)))
            for layer in range(2)
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        """Predict the next token.

        Args:
            input_ids: Token ids ``(batch, token)``, int64; column 0 holds the start token.

        Returns:
            ``(batch, token, vocabulary)``: the attention that ``L1H0`` gives to each token.

        Raises:
            ValueError: Longer than ``max_length``.
        """
        length = input_ids.shape[-1]
        if length > self.max_length:
            raise ValueError(
                f"input_ids: {length} tokens; the model has positions for {self.max_length}"
            )
        token = F.one_hot(input_ids, self.n_tokens)
        position = torch.eye(self.max_length, device=input_ids.device)[:length]
        stream = torch.cat([token, position.expand(len(token), -1, -1)], dim=-1)
        stream = F.pad(stream, (0, 2 * HEADS_PER_LAYER * self.n_tokens)).to(self.dtype)
        for attention in self.attention:
            stream = stream + attention(stream)
        return stream[..., self._slot(1, 0)]

    def _slot(self, layer: int, head: int) -> slice:
        """Return the part of the stream that a head writes."""
        start = self.n_tokens + self.max_length
        start += (layer * HEADS_PER_LAYER + head) * self.n_tokens
        return slice(start, start + self.n_tokens)

    def _weights(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Set query, key, value and output maps of one layer.

        A head's inner width holds the vocabulary, the positions, and one more for the rest on the
        start token: there every query holds ``b`` (the sum over its position's one-hot).
        """
        n, length, b = self.n_tokens, self.max_length, self.sharpness
        stream, inner = n + length + 2 * HEADS_PER_LAYER * n, n + length + 1
        query = torch.zeros(HEADS_PER_LAYER, stream, inner, dtype=torch.float64)
        key = torch.zeros_like(query)
        tokens, positions, rest = slice(0, n), slice(n, n + length), n + length
        same_token, same_position = torch.eye(n), torch.eye(length)
        if layer == 0:
            query[0, positions, positions] = b * same_position.roll(-1, 1)
            query[0, n, positions] = 0
            key[0, positions, positions] = same_position
            query[1, tokens, tokens] = b * same_token
            query[1, positions, positions] = b * same_position
            query[1, positions, rest] = b
            key[1, tokens, tokens] = same_token
            key[1, positions, positions] = -2 * same_position
            key[1, n, rest] = 0.5
            query[2, positions, positions] = b * same_position
            key[2, positions, positions] = same_position
        else:
            query[0, tokens, tokens] = b * same_token
            query[0, positions, rest] = b
            key[0, self._slot(0, 0), tokens] = same_token
            key[0, n, rest] = 0.5
            query[2, positions, rest] = b
            key[2, n, rest] = 1
        value = torch.zeros(stream, n)
        value[tokens] = same_token
        output = torch.zeros(HEADS_PER_LAYER, n, stream)
        for head in range(HEADS_PER_LAYER):
            output[head, :, self._slot(layer, head)] = same_token
        return query, key, value, output
