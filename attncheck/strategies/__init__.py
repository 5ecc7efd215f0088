"""Hypothesis strategies: valid attention weights, masks, queries and keys, tokens, shapes.

Every argument that takes a value takes a strategy for it too. Examples shrink to what a person
can read: small shapes, weights that are simple shares (0, 1, 0.5), queries and keys of zeros.
"""

from attncheck.strategies.inputs import QueryKeyValue, qkv
from attncheck.strategies.masks import attention_masks
from attncheck.strategies.options import pattern_options
from attncheck.strategies.shapes import attention_shapes
from attncheck.strategies.tokens import token_sequences
from attncheck.strategies.weights import attention_layers, attention_weights

__all__ = [
    "QueryKeyValue",
    "attention_layers",
    "attention_masks",
    "attention_shapes",
    "attention_weights",
    "pattern_options",
    "qkv",
    "token_sequences",
]
