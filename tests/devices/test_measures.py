"""Measures of given weights: on the device in any dtype, against the same weights in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attncheck import (
    METRICS,
    AttentionMaps,
    LayerAttention,
    attention_flow,
    attention_rollout,
    compute_attention_statistics,
    head_redundancy,
    head_similarity,
    profile_attention,
)
from tests.devices.support import DTYPES, HALF, name_of, on
from tests.evaluate.agreement import near

N = 48


def weights(visible: Tensor, seed: int = 0) -> Tensor:
    """Rows of three heads in two sequences, sharp ones among them."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, 3, *visible.shape[-2:], generator=generator, dtype=torch.float64)
    scores = scores * torch.tensor([0.3, 2.0, 9.0])[:, None, None]
    return torch.nan_to_num(scores.masked_fill(~visible, -torch.inf).softmax(-1))


def made() -> dict[str, LayerAttention]:
    triangle = torch.ones(N, N).tril().bool()
    ends = torch.tensor([N, N - 9])
    pad = (torch.arange(N) < ends[:, None])[:, None, None]
    holes = torch.rand(2, 1, N, N, generator=torch.Generator().manual_seed(5)) < 0.6
    last = triangle[-7:]
    half = weights(triangle) / 2
    return {
        "bidirectional": LayerAttention(weights(triangle | ~triangle), kind="self"),
        "causal": LayerAttention(weights(triangle), kind="self", causal=True),
        "padding": LayerAttention(weights(pad.expand(2, 1, N, N)), kind="self", mask=pad),
        "last queries": LayerAttention(weights(last), kind="self", causal=True),
        "holes": LayerAttention(weights(holes), kind="self", mask=holes),
        "sink": LayerAttention(
            half, kind="self", causal=True, sink_mass=torch.full((2, 3, N), 0.5).double()
        ),
    }


LAYERS = made()


def size_of(measure: str) -> int:
    """The largest value that a measure can have, of which it may be off by a share."""
    return N if measure in METRICS and METRICS[measure].unit in ("keys", "tokens") else 1


def rounded(layer: LayerAttention, device: torch.device, dtype: torch.dtype) -> LayerAttention:
    sink = None if layer.sink_mass is None else layer.sink_mass.to(device, dtype)
    mask = None if layer.mask is None else layer.mask.to(device)
    return replace(layer, weights=layer.weights.to(device, dtype), sink_mass=sink, mask=mask)


def in_parts(held: Tensor) -> Tensor:
    """Rows in 256ths, which every dtype holds exactly: they still sum to 1."""
    parts = (held * 256).floor()
    rest = (held.sum(-1) * 256).round() - parts.sum(-1)
    return parts.scatter_add(-1, held.argmax(-1, keepdim=True), rest[..., None]) / 256


def both(name: str, device: torch.device, dtype: torch.dtype) -> tuple[LayerAttention, ...]:
    """A layer on the device, and the very same numbers in float64 on the CPU."""
    layer = LAYERS[name]
    if dtype in HALF:
        layer = replace(layer, weights=in_parts(layer.weights))
    found = rounded(layer, device, dtype)
    return found, rounded(found, torch.device("cpu"), torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("metric", METRICS)
def test_every_metric(metric: str, dtype: torch.dtype, attention_device: torch.device) -> None:
    for name in LAYERS:
        ours, theirs = both(name, attention_device, dtype)
        values, valid = METRICS[metric].rows(ours)
        expected, rows = METRICS[metric].rows(theirs)
        assert values.device.type == attention_device.type
        assert values.dtype == torch.float64
        assert torch.equal(valid.cpu(), rows), name
        near(values.cpu().numpy(), expected.numpy(), 1e-5 * size_of(metric), f"{name} {metric}")


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("name", LAYERS)
def test_profile_of_given_weights(
    name: str, dtype: torch.dtype, attention_device: torch.device
) -> None:
    ours, theirs = both(name, attention_device, dtype)
    tokens = [str(place % 11) if place % 7 else "." for place in range(N)]
    found = profile_attention(AttentionMaps([ours]), tokens=tokens)
    expected = profile_attention(AttentionMaps([theirs]), tokens=tokens)
    assert found.measures == expected.measures
    for measure in expected.measures:
        near(found[measure], expected[measure], 1e-5 * size_of(measure), measure)
    assert [h.label for h in found.classify()] == [h.label for h in expected.classify()]


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_statistics(dtype: torch.dtype, attention_device: torch.device) -> None:
    for name in ("bidirectional", "causal"):
        ours, theirs = both(name, attention_device, dtype)
        found = compute_attention_statistics(ours.weights)
        expected = compute_attention_statistics(theirs.weights)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            size = N if key == "effective_tokens" else 1
            near(np.asarray(found[key]), np.asarray(value), 1e-5 * size, f"{name} {key}")
        one = compute_attention_statistics(ours.weights[0, 0])
        for key, value in one.items():
            near(np.asarray(value), np.asarray(found[key])[0, 0], 1e-5, f"one matrix, {key}")


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("within", [False, True])
def test_similarity(within: bool, dtype: torch.dtype, attention_device: torch.device) -> None:
    pairs = [both(name, attention_device, dtype) for name in ("causal", "sink", "bidirectional")]
    found, expected = (
        head_similarity(AttentionMaps(list(side)), within_layers=within)
        for side in zip(*pairs, strict=True)
    )
    assert found.names == expected.names
    near(found.distance, expected.distance, 1e-5, "distance")
    assert np.nanmax(expected.distance) > 0.1


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_redundancy(dtype: torch.dtype, attention_device: torch.device) -> None:
    twice = LAYERS["causal"].weights[:, [0, 1, 1]]
    found = head_redundancy(twice.to(attention_device, dtype))
    assert found.redundant == ("L0H1", "L0H2")


FLOWS: dict[str, Callable[..., Tensor]] = {
    "rollout": attention_rollout,
    "max": lambda attention: attention_rollout(attention, head_fusion="max"),
    "chance": lambda attention: attention_rollout(attention, chance=True),
    "flow": lambda attention: attention_flow(attention, queries=[3, N - 1]),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("name", FLOWS)
def test_across_layers(name: str, dtype: torch.dtype, attention_device: torch.device) -> None:
    pairs = [both(layer, attention_device, dtype) for layer in ("causal", "sink", "causal")]
    found, expected = (FLOWS[name](AttentionMaps(list(s))) for s in zip(*pairs, strict=True))
    near(found.cpu().numpy(), expected.numpy(), 1e-5, name)


def test_what_people_hold(attention_device: torch.device) -> None:
    """A tensor, a list, an output with tensors on the device, with masks and tokens there too."""
    held = LAYERS["causal"].weights.float()
    mask = torch.ones(2, N, dtype=torch.long)
    mask[1, -4:] = 0
    tokens = torch.arange(N) % 13
    forms: list[Any] = [held, [held, held], (held,), {"attentions": (held, held)}]
    for form in forms:
        expected = profile_attention(form, mask=mask, tokens=tokens)
        found = profile_attention(
            on(attention_device, form),
            mask=mask.to(attention_device),
            tokens=tokens.to(attention_device),
        )
        for measure in expected.measures:
            near(found[measure], expected[measure], 1e-5 * size_of(measure), measure)
    mixed = profile_attention(on(attention_device, held), mask=mask, tokens=tokens)
    near(mixed["entropy"], profile_attention(held, mask=mask)["entropy"], 1e-5, "mask on the CPU")
