"""Layers drawn at random, and the float64 dense reference that judges their profiles.

The reference softmax is plain torch in float64, written here; the dense evaluator reads it.

How far the two may lie apart, by what rounding allows: scores are float32 sums of products, each
off by a few roundings of the largest score that query and key can make (``4 eps`` times it is held
to). A weight is off by that share of itself, and so is every mass; an entropy by that times its own
size, a number of keys by that times itself, a distance by that times the longest. In half precision
query and key are what they are, scores are computed from them in float32, and no weight is ever
rounded to half precision: the bound is that of float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from attncheck.attention import LayerAttention, QueryKey
from attncheck.evaluate.dense import profile_layer
from attncheck.profile import LayerProfile

MASKS = ("none", "causal", "padding", "causal padding", "window", "holes", "additive", "per head")


@dataclass(frozen=True)
class Drawn:
    """A layer that holds query and key, and what is told of its keys."""

    layer: LayerAttention
    tokens: Any = None
    segment_ids: Any = None
    options: dict[str, Any] = field(default_factory=dict)

    def reference(self) -> LayerProfile:
        """Profile the float64 weights densely."""
        return profile_layer(with_weights(self.layer), self.tokens, segment_ids=self.segment_ids)


def with_weights(layer: LayerAttention) -> LayerAttention:
    """Compute the weights in float64, by definition."""
    record = layer.query_key
    assert record is not None
    query, key = record.query.double(), record.key.double()[:, list(record.key_heads)]
    scores = record.scale * (query @ key.transpose(-1, -2))
    if record.softcap is not None:
        scores = record.softcap * torch.tanh(scores / record.softcap)
    if record.bias is not None:
        scores = scores + record.bias.double()
    if record.mask is not None and record.mask.dtype != torch.bool:
        scores = scores + record.mask.double()
    scores = scores.masked_fill(~layer.visible(), -math.inf)
    top = scores.amax(-1, keepdim=True)
    sink = None
    if record.sinks is not None:
        sink = record.sinks.double().expand(*scores.shape[:3], 1)
        top = torch.maximum(top, sink)
    top = top.masked_fill(top == -math.inf, 0)
    raised = (scores - top).exp()
    total = raised.sum(-1, keepdim=True)
    total = total if sink is None else total + (sink - top).exp()
    weights = torch.where(total > 0, raised / total.clamp(min=1e-300), 0)
    rest = None if sink is None else ((sink - top).exp() / total)[..., 0]
    return replace(layer, weights=weights, sink_mass=rest)


@st.composite
def layers(draw: st.DrawFn, *, longest: int = 150) -> Drawn:
    """Draw layers of every kind: masks, groups of heads, caches, sinks, caps, dtypes."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch, shared = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3]))
    heads, size = shared * draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([4, 16]))
    n_key = draw(st.integers(1, longest))
    how = draw(st.sampled_from(MASKS))
    crosses = how in ("none", "padding") and draw(st.booleans())
    n_query = n_key
    if crosses:
        n_query = draw(st.integers(1, longest))
    elif "causal" in how and draw(st.booleans()):
        n_query = draw(st.integers(1, n_key))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
    sharpness = draw(st.sampled_from([0.0, 0.5, 2.0, 8.0]))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    mask, causal = _mask(how, generator, (batch, heads, n_query, n_key))
    bias = normal(1, heads, n_query, n_key) if draw(st.booleans()) else None
    sinks = normal(1, heads, 1, 1) if draw(st.booleans()) else None
    layer = LayerAttention(
        QueryKey(
            query=(normal(batch, heads, n_query, size) * sharpness).to(dtype),
            key=normal(batch, shared, n_key, size).to(dtype),
            key_heads=tuple(head * shared // heads for head in range(heads)),
            scale=size**-0.5,
            softcap=draw(st.sampled_from([None, 3.0])),
            bias=bias,
            mask=torch.where(mask, 0.0, -math.inf)
            if how == "additive" and mask is not None
            else mask,
            sinks=sinks,
        ),
        kind="cross" if crosses else "self",
        mask=mask,
        causal=causal,
    )
    tokens, segments = None, None
    if not crosses and draw(st.booleans()):
        rows = draw(st.sampled_from([1, batch]))
        kinds = draw(st.sampled_from([1, 3, 40]))
        numbers = torch.randint(0, kinds, (rows, n_key), generator=generator).tolist()
        tokens = [[str(n) if n else "." for n in row] for row in numbers]
    if not crosses and draw(st.booleans()):
        segments = [place // max(1, n_key // 3) for place in range(n_key)]
    return Drawn(layer, tokens, segments)


def _mask(
    how: str, generator: torch.Generator, shape: tuple[int, int, int, int]
) -> tuple[Tensor | None, bool]:
    batch, heads, n_query, n_key = shape
    behind = torch.arange(n_query)[:, None] + (n_key - n_query) - torch.arange(n_key)
    if how in ("none", "causal"):
        return None, how == "causal"
    if "padding" in how:
        ends = torch.randint(0, n_key + 1, (2, batch, 1), generator=generator).sort(dim=0).values
        keys = torch.arange(n_key)
        return ((keys >= ends[0]) & (keys < ends[1]))[:, None, None], "causal" in how
    if how == "window":
        return (behind < max(1, n_key // 4))[None, None], True
    several = heads if how == "per head" else 1
    drawn = torch.rand(batch, several, n_query, n_key, generator=generator) < 0.6
    return drawn, False


def assert_agree(found: LayerProfile, expected: LayerProfile, layer: LayerAttention) -> None:
    """Hold a profile against the reference: counts exactly, the rest to rounding."""
    slack = _slack(layer)
    longest = max(layer.n_query, layer.n_key)
    size = {"effective_keys": longest, "participation_ratio": longest, "mean_distance": longest}
    for name, sums in found.sums.items():
        assert found.counts[name].tolist() == expected.counts[name].tolist(), name
        bound = slack * size.get(name, max(1.0, math.log(longest + 1)))
        near(found.value(f"{name}.mean"), expected.value(f"{name}.mean"), bound, name)
        near(found.value(f"{name}.max"), expected.value(f"{name}.max"), bound, name)
        assert sums.dtype == np.float64
    mine, theirs = found.evidence, expected.evidence
    bound = slack * longest * layer.batch * 4
    for name in ("rows", "inverse", "square", "entropy", "capacity", "overlap"):
        near(getattr(mine, name), getattr(theirs, name), bound, name)
    groups = {"offsets": (mine.offsets, theirs.offsets), "columns": (mine.columns, theirs.columns)}
    groups |= {name: (held, theirs.templates[name]) for name, held in mine.templates.items()}
    groups |= {f"{n} rest": (held, theirs.resting[n]) for n, held in mine.resting.items()}
    groups["beside"] = mine.beside, theirs.beside
    assert set(mine.templates) == set(theirs.templates)
    for name, (one, other) in groups.items():
        for part in ("mass", "chance", "rows", "variance"):
            mine_held, its = getattr(one, part), getattr(other, part)
            rounded = 2.0**-24 if mine_held.dtype == np.float32 else 0.0  # variances of lines
            assert not rounded or (part == "variance" and name in ("offsets", "columns"))
            near(mine_held, its, bound, f"{name} {part}", rounded)
    assert mine.spans.to_dict() == theirs.spans.to_dict()


def near(found: Any, expected: Any, bound: float, name: str, rounded: float = 0.0) -> None:
    """Compare arrays, one of them rounded by a share of itself; NaN stands against NaN."""
    assert found.shape == expected.shape, name
    np.testing.assert_allclose(
        found, expected, rtol=rounded, atol=bound, err_msg=name, equal_nan=True
    )


def _slack(layer: LayerAttention) -> float:
    record = layer.query_key
    assert record is not None
    largest = float(record.query.float().norm(dim=-1).max() * record.key.float().norm(dim=-1).max())
    eps = torch.finfo(record.computed_in).eps
    return 4 * eps * max(4.0, largest * record.scale, math.sqrt(layer.n_key))
