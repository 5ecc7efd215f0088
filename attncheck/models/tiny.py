"""A transformer small enough to ship and to understand: 2 layers, 2 heads, trained to copy.

It is the recipe of Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021):
attention only, two layers. Layer 0 learns a previous-token head, layer 1 induction heads that
read its output. Nothing in here is made for attncheck: it is captured like anybody's model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from attncheck.models.fixture_files import fixture_path

__all__ = ["VOCABULARY", "TinyTransformer", "load_tiny_model", "repeated_tokens"]

VOCABULARY: Final = ("<bos>", *"abcdefghijklmnopqrstuvwxyz", *"01234")
"""How the 32 token ids print; id 0 starts every sequence."""

WEIGHTS_FILE: Final = "tiny_transformer.safetensors"


class CausalSelfAttention(nn.Module):
    """Multi-head causal self-attention on ``(batch, token, width)``."""

    head_scale: Tensor

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.register_buffer("head_scale", torch.ones(n_heads), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens: ``(batch, token, width)`` in and out."""
        query, key, value = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for part in self.query_key_value(x).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        mixed = mixed * self.head_scale[:, None, None]
        joined: Tensor = self.output(mixed.transpose(1, 2).flatten(-2))
        return joined


class TinyTransformer(nn.Module):
    """Attention-only transformer: learned positions, pre-LayerNorm, no MLP, linear maps unbiased.

    With its default sizes it has 11,456 parameters.

    Args:
        n_tokens: Size of the vocabulary.
        width: Size of the residual stream.
        n_heads: Heads per layer; ``width`` is divided among them.
        n_layers: Number of attention layers.
        max_length: Longest sequence, start token included.

    Example:
        >>> model = TinyTransformer()
        >>> sum(p.numel() for p in model.parameters())
        11456
        >>> model(torch.tensor([[0, 3, 1, 2]])).shape
        torch.Size([1, 4, 32])
    """

    def __init__(
        self,
        n_tokens: int = len(VOCABULARY),
        width: int = 32,
        n_heads: int = 2,
        n_layers: int = 2,
        max_length: int = 32,
    ) -> None:
        super().__init__()
        self.n_tokens, self.max_length = n_tokens, max_length
        self.embed = nn.Embedding(n_tokens, width)
        self.position = nn.Embedding(max_length, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(n_layers))
        self.attention = nn.ModuleList(CausalSelfAttention(width, n_heads) for _ in range(n_layers))
        self.final_norm = nn.LayerNorm(width)
        self.unembed = nn.Linear(width, n_tokens, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=width**-0.5)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Predict the next token.

        Args:
            input_ids: Token ids ``(batch, token)``, int64, at most ``max_length`` tokens.

        Returns:
            Logits ``(batch, token, vocabulary)``.

        Raises:
            ValueError: Not two-dimensional, or longer than ``max_length``.
        """
        length = input_ids.shape[-1]
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids: shape {tuple(input_ids.shape)}; expected (batch, token)")
        if length > self.max_length:
            raise ValueError(
                f"input_ids: {length} tokens; the model has positions for {self.max_length}"
            )
        x = self.embed(input_ids) + self.position.weight[:length]
        for norm, attention in zip(self.norms, self.attention, strict=True):
            x = x + attention(norm(x))
        logits: Tensor = self.unembed(self.final_norm(x))
        return logits

    @contextmanager
    def ablate(self, *heads: str) -> Iterator[TinyTransformer]:
        """Silence heads inside a ``with`` block: their output is multiplied by 0.

        Their attention weights stay what they are; what they would write is not written.

        Args:
            heads: Names such as ``"L0H1"``.

        Raises:
            ValueError: A name is no head of this model.

        Example:
            >>> model, ids = load_tiny_model(), repeated_tokens(8)
            >>> with model.ablate("L0H0", "L0H1", "L1H0", "L1H1"):
            ...     blind = model(ids)
            >>> torch.equal(blind, model(ids))
            False
        """
        places = [self._place(name) for name in heads]
        before = [attention.head_scale.clone() for attention in self._layers()]
        try:
            for layer, head in places:
                self._layers()[layer].head_scale[head] = 0
            yield self
        finally:
            for attention, scale in zip(self._layers(), before, strict=True):
                attention.head_scale.copy_(scale)

    def _layers(self) -> list[CausalSelfAttention]:
        return [layer for layer in self.attention if isinstance(layer, CausalSelfAttention)]

    def _place(self, name: str) -> tuple[int, int]:
        match = re.fullmatch(r"L(\d+)H(\d+)", name)
        layers = self._layers()
        if match:
            layer, head = int(match[1]), int(match[2])
            if layer < len(layers) and head < layers[layer].n_heads:
                return layer, head
        known = [f"L{i}H{h}" for i, layer in enumerate(layers) for h in range(layer.n_heads)]
        raise ValueError(f"heads: no head {name!r}; the heads are {', '.join(known)}")


def load_tiny_model() -> TinyTransformer:
    """Load the shipped trained model, in evaluation mode, on the CPU.

    Trained on walks around random cycles of letters (see ``fixtures/train_tiny.py``), it predicts
    what followed the current letter last time. ``fixtures/manifest.json`` says how it was made and
    what its heads score.

    Raises:
        FileNotFoundError: The weights were not installed.

    Example:
        >>> model = load_tiny_model()
        >>> ids = repeated_tokens(period=10)
        >>> bool((model(ids)[0, 11:-1].argmax(-1) == ids[0, 12:]).all())
        True
    """
    model = TinyTransformer()
    model.load_state_dict(load_file(fixture_path(WEIGHTS_FILE)))
    return model.eval()


def repeated_tokens(period: int, repeats: int = 2, *, seed: int = 0, batch: int = 1) -> Tensor:
    """Make a prompt on which heads that copy show themselves: start token, then a block repeated.

    The block's tokens are distinct, so that each has exactly one right successor (with tokens
    drawn with replacement even a perfect model must guess).

    Args:
        period: Length of the block, 1 to 31.
        repeats: How often it occurs; ``1 + period * repeats`` may not exceed the model's 32.
        seed: Of the draw; the global random state is neither read nor changed.
        batch: Number of sequences, each with its own block.

    Returns:
        Token ids ``(batch, 1 + period * repeats)``, int64.

    Example:
        >>> " ".join(tokens_of(repeated_tokens(4))[0])
        '<bos> m 1 c d m 1 c d'
    """
    alphabet = len(VOCABULARY) - 1
    if not 1 <= period <= alphabet:
        raise ValueError(f"period: got {period}; {alphabet} distinct tokens allow 1 to {alphabet}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(batch, alphabet, generator=generator).argsort(-1)
    block = 1 + order[:, :period]
    return F.pad(block.repeat(1, repeats), (1, 0), value=0)


def tokens_of(input_ids: Tensor) -> list[list[str]]:
    """Spell token ids out, one list per sequence.

    Example:
        >>> tokens_of(torch.tensor([[0, 1, 26]]))
        [['<bos>', 'a', 'z']]
    """
    return [[VOCABULARY[i] for i in row] for row in input_ids.tolist()]


def encode(text: Iterable[str]) -> Tensor:
    """Turn letters into ids behind a start token, ``(1, token)``.

    Raises:
        ValueError: A character is not in the vocabulary.

    Example:
        >>> encode("abab")
        tensor([[0, 1, 2, 1, 2]])
    """
    ids = {token: i for i, token in enumerate(VOCABULARY)}
    letters = [letter for letter in text if letter != " "]
    unknown = sorted({letter for letter in letters if letter not in ids})
    if unknown:
        raise ValueError(
            f"text: {', '.join(map(repr, unknown))} not in the vocabulary: a to z and 0 to 4"
        )
    return torch.tensor([[0, *(ids[letter] for letter in letters)]])
