"""Random layers for property tests: any shape, mask, dtype and sharpness, with a learned sink."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from attncheck.attention import LayerAttention


def softmax_over(scores: Tensor, visible: Tensor) -> Tensor:
    """Softmax over visible keys; rows that see none are exactly zero."""
    weights = torch.softmax(scores.masked_fill(~visible, -torch.inf), -1)
    return torch.nan_to_num(weights)


@st.composite
def layers(draw: st.DrawFn, dtype: torch.dtype = torch.float64) -> LayerAttention:
    """A valid `LayerAttention` of small random shape."""
    batch, heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    n_key = draw(st.integers(1, 7))
    n_query = draw(st.one_of(st.just(n_key), st.integers(1, 7)))
    kind = draw(st.sampled_from(["self", "cross", "unknown"]))
    causal = kind != "cross" and n_query <= n_key and draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scores = torch.randn(batch, heads, n_query, n_key, generator=generator, dtype=torch.float64)
    scores = scores * draw(st.sampled_from([0.0, 1.0, 5.0, 200.0]))
    mask = draw(masks(batch, heads, n_query, n_key))
    bare = LayerAttention(scores, kind=kind, causal=causal, mask=mask)
    weights = softmax_over(scores, bare.visible().expand(scores.shape))
    sink = None
    if draw(st.booleans()):
        sink = torch.rand(batch, heads, n_query, generator=generator, dtype=torch.float64)
        weights = weights * (1 - sink[..., None])
        sink = sink.to(dtype)
    weights = weights.to(dtype)
    return LayerAttention(weights, kind=kind, causal=causal, mask=mask, sink_mass=sink)


@st.composite
def masks(draw: st.DrawFn, batch: int, heads: int, n_query: int, n_key: int) -> Tensor | None:
    """None, padding on either side, or an arbitrary mask per head."""
    form = draw(st.sampled_from(["none", "right", "left", "any"]))
    if form == "none":
        return None
    if form == "any":
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
        return torch.rand(batch, heads, n_query, n_key, generator=generator) < 0.6
    lengths = torch.tensor([draw(st.integers(1, n_key)) for _ in range(batch)])
    keys = torch.arange(n_key)
    kept = keys < lengths[:, None] if form == "right" else keys >= n_key - lengths[:, None]
    return kept[:, None, None, :]
