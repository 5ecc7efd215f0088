"""Valid attention weights: any, or those of a pattern, or a whole layer with its mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from numpy.typing import NDArray
from torch import Tensor

from attncheck.attention import LayerAttention
from attncheck.patterns.catalogue import canonical_name
from attncheck.patterns.synthetic import create_synthetic_attention
from attncheck.strategies.drawing import Given, drawn, drawn_dtype, grid
from attncheck.strategies.masks import MASK_KINDS, attention_masks, require_kinds
from attncheck.strategies.options import pattern_options
from attncheck.strategies.shapes import Shape, attention_shapes, drawn_shape

__all__ = ["attention_layers", "attention_weights"]

SHARES = st.sampled_from([0.0, 1.0, 2.0, 3.0, 9.0, 99.0, 1e4, 1e8])
"""Numbers whose rows, divided by their sum, give anything from exact zeros over even rows and
ties to one key with all but 1e-8 of the mass; the first ones make the simplest fractions."""

NOISE_STEPS = 20


@st.composite
def _weights(
    draw: DrawFn,
    shape: Given[Shape],
    pattern: Given[str] | None,
    causal: Given[bool],
    noise: float,
    dtype: Given[torch.dtype],
    arguments: Mapping[str, Any],
) -> Tensor:
    size, is_causal = drawn_shape(draw, shape), drawn(draw, causal)
    n_query, n_key = size[2:]
    if n_query > n_key and (is_causal or pattern is not None):
        raise ValueError(
            f"shape: {n_query} queries for {n_key} keys, but causal attention and patterns need "
            "at least as many keys as queries"
        )
    visible = np.ones((n_query, n_key), bool)
    if is_causal:
        visible = np.tril(visible, n_key - n_query)
    if pattern is None:
        weights = torch.from_numpy(_rows(draw, size, visible))
    else:
        name = canonical_name(drawn(draw, pattern))
        weights = _of_pattern(draw, name, size, is_causal, arguments)
        level = noise * draw(st.integers(0, NOISE_STEPS)) / NOISE_STEPS
        if level > 0:
            drawn_noise = torch.from_numpy(_rows(draw, size, visible))
            weights = (1 - level) * weights + level * drawn_noise
    return weights.to(drawn_dtype(draw, dtype))


def _rows(draw: DrawFn, shape: Shape, visible: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Draw shares and divide by their sum; a row without any is even, one that sees none is 0."""
    shares = grid(draw, shape, SHARES) * visible
    shares = np.where(shares.sum(-1, keepdims=True) > 0, shares, visible.astype(float))
    sums: NDArray[np.float64] = shares.sum(-1, keepdims=True)
    return shares / np.where(sums > 0, sums, 1)


def _of_pattern(
    draw: DrawFn, name: str, shape: Shape, causal: bool, arguments: Mapping[str, Any]
) -> Tensor:
    batch, heads, n_query, n_key = shape
    options = {**draw(pattern_options(name, n_key)), **arguments}
    if name == "heterogeneous":
        options.setdefault("seed", draw(st.integers(0, 99)))
    whole = create_synthetic_attention(
        n_key, name, 0, causal=causal, batch=batch, heads=heads, dtype=torch.float64, **options
    )
    return whole[..., n_key - n_query :, :]


def attention_weights(
    pattern: Given[str] | None = None,
    *,
    shape: Given[Shape] | None = None,
    causal: Given[bool] = False,
    noise: float = 0.2,
    dtype: Given[torch.dtype] = torch.float32,
    **arguments: Any,
) -> SearchStrategy[Tensor]:
    """Draw valid attention weights ``(batch, head, query, key)``.

    Without a pattern each row is drawn as shares of its keys: even rows, exact zeros, ties, one
    key with everything; the minimal example is uniform. With a pattern, the rows are the
    pattern's, options drawn from the ranges of the catalogue, mixed with up to ``noise`` of rows
    drawn that way; the minimal example is the clean pattern with its default options.

    Args:
        pattern: A name of `attncheck.PATTERNS` or an alias, ``"mixed"`` or ``"heterogeneous"``.
        shape: ``(batch, head, query, key)``; with fewer queries than keys the queries are the
            last positions. Default: `attention_shapes`, square.
        causal: Queries see no later key.
        noise: Largest share of the mass that does not follow the pattern, 0 to 1.
        dtype: Of the result; rows are computed in float64.
        **arguments: For `attncheck.create_synthetic_attention`: ``tokens``, ``delimiters`` and
            options of the pattern, which are then not drawn.

    Raises:
        ValueError: ``noise`` is no share, there is no such pattern, or options were given without
            one; when drawing: ``shape``, ``dtype`` or options are impossible.

    Example:
        >>> from hypothesis import find
        >>> find(attention_weights(), lambda a: (a.triu(1) > 0.9).any()).tolist()
        [[[[0.0, 1.0], [0.0, 1.0]]]]
    """
    if not 0 <= noise <= 1:
        raise ValueError(f"noise: got {noise!r}; expected a share from 0 to 1")
    if pattern is None and arguments:
        raise ValueError(f"{', '.join(arguments)}: only a pattern takes these; pass pattern=")
    if isinstance(pattern, str):
        pattern = canonical_name(pattern)
    chosen = attention_shapes() if shape is None else shape
    return _weights(chosen, pattern, causal, noise, dtype, arguments)


@st.composite
def _layers(
    draw: DrawFn,
    shape: Given[Shape],
    kinds: Sequence[str],
    causal: Given[bool],
    dtype: Given[torch.dtype],
) -> LayerAttention:
    size = drawn_shape(draw, shape)
    n_query, n_key = size[2:]
    is_causal = n_query <= n_key and drawn(draw, causal)
    masked = bool(kinds) and draw(st.sampled_from([False, True, True]))
    empty_rows = (
        masked and "arbitrary" in kinds and draw(st.sampled_from([False, False, False, True]))
    )
    mask = draw(attention_masks(size, kinds=kinds, empty_rows=empty_rows)) if masked else None
    visible = np.ones((n_query, n_key), bool) if mask is None else mask.numpy()
    if is_causal:
        visible = visible & np.tril(np.ones((n_query, n_key), bool), n_key - n_query)
    return LayerAttention(
        torch.from_numpy(_rows(draw, size, visible)).to(drawn_dtype(draw, dtype)),
        kind="self" if is_causal or n_query == n_key else "cross",
        mask=mask,
        causal=is_causal,
    )


def attention_layers(
    *,
    shape: Given[Shape] | None = None,
    masks: Sequence[str] = tuple(MASK_KINDS),
    causal: Given[bool] = st.booleans(),  # noqa: B008 - a strategy is immutable
    dtype: Given[torch.dtype] = torch.float32,
) -> SearchStrategy[LayerAttention]:
    """Draw a layer: weights with a mask and causality that agree with them.

    A query that mask and causality leave without any key has a row of zeros, as
    ``scaled_dot_product_attention`` returns it.

    Args:
        shape: ``(batch, head, query, key)``. Default: `attention_shapes`, square or not.
        masks: Kinds of masks, see `attention_masks`; one layer in three has none. With
            ``"arbitrary"`` among them, some queries see no key at all. Empty: never a mask.
        causal: Queries see no later key; never with more queries than keys.
        dtype: Of the weights.

    Raises:
        ValueError: A kind of mask is not known; when drawing: ``shape`` or ``dtype`` is impossible.

    Example:
        >>> from hypothesis import find
        >>> layer = find(attention_layers(), lambda layer: layer.mask is not None and layer.causal)
        >>> layer.weights.tolist(), layer.mask.tolist()
        ([[[[1.0]]]], [[[[True]]]])
    """
    if masks:
        require_kinds(masks, "masks")
    chosen = attention_shapes("any") if shape is None else shape
    return _layers(chosen, tuple(masks), causal, dtype)
