"""Profiles from query and key on the device, against dense float64 arithmetic on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from attncheck import AttentionMaps, HeadProfile, profile_attention, profile_dataset, profile_model
from attncheck.evaluate import profile_layer
from attncheck.models import load_tiny_model, repeated_tokens
from tests.devices.profile_cases import KINDS, case, reference
from tests.devices.support import DTYPES, HALF, doubled, inputs, layers, name_of
from tests.devices.test_gates import causal
from tests.evaluate.agreement import assert_agree, near

CASES = [
    *((kind, n, torch.float32) for kind in KINDS for n in (5, 64, 200)),
    *((kind, 200, dtype) for kind in KINDS for dtype in HALF),
    *((kind, 700, torch.float32) for kind in ("causal", "window", "tokens", "segments", "sinks")),
    *((kind, 700, torch.bfloat16) for kind in ("causal", "bidirectional", "padding", "grouped")),
]


@pytest.mark.parametrize(("kind", "n", "dtype"), CASES, ids=name_of)
def test_a_layer(kind: str, n: int, dtype: torch.dtype, attention_device: torch.device) -> None:
    held = case(kind, n)
    layer = held.layer(dtype, attention_device)
    found = profile_layer(layer, **held.options)
    assert_agree(found, reference(kind, n, dtype), layer)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_whole_profiles_and_their_labels(
    dtype: torch.dtype, attention_device: torch.device
) -> None:
    held = case("tokens", 64)
    layer = held.layer(dtype, attention_device)
    found = profile_attention(AttentionMaps([layer]), **held.options)
    expected = HeadProfile([reference("tokens", 64, dtype)])
    assert [h.label for h in found.classify()] == [h.label for h in expected.classify()]
    assert [h.label for h in expected.classify()] == ["induction", "duplicate_token"]
    weights = held.layer(dtype, attention_device).weights
    given = profile_attention(weights, causal=True, **held.options)
    for measure in expected.measures:
        bound = 2e-5 * (64 if expected[measure].max() > 1 else 1)
        near(given[measure], expected[measure], bound, measure)


def test_profiles_add_up_to_that_of_all(attention_device: torch.device) -> None:
    model = layers(causal, attention_device)
    batches = [inputs(attention_device, n) for n in (30, 41, 64)]
    parts = [profile_model(model, batch) for batch in batches]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    whole = profile_dataset(model, batches, progress=False)
    exact = profile_dataset(doubled(model), [b.cpu().double() for b in batches], progress=False)
    for measure in exact.measures:
        bound = 2e-5 * (64 if exact[measure].max() > 1 else 1)
        near(merged[measure], whole[measure], 1e-9 * bound / 2e-5, measure)
        near(whole[measure], exact[measure], bound, measure)
    on_both = parts[0].merge(profile_model(doubled(model).float(), batches[1].cpu()))
    assert on_both.layers[0].counts["entropy"].tolist() == [142] * 4


def test_a_data_set_is_moved_to_the_model(tmp_path: Any, attention_device: torch.device) -> None:
    model = load_tiny_model()
    batches = [{"input_ids": repeated_tokens(period)} for period in (6, 9, 12)]
    expected = profile_dataset(model, batches, progress=False)
    path = tmp_path / "heads.json"
    found = profile_dataset(load_tiny_model().to(attention_device), batches, save=path)
    assert [h.label for h in found.classify()] == [h.label for h in expected.classify()]
    for measure in expected.measures:
        near(HeadProfile.load(path)[measure], found[measure], 0, measure)
        bound = 2e-5 * (25 if expected[measure].max() > 1 else 1)
        near(found[measure], expected[measure], bound, measure)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_comparing_devices_finds_no_change(
    dtype: torch.dtype, attention_device: torch.device
) -> None:
    model, ids = load_tiny_model(), repeated_tokens(12)
    exact = profile_model(model.double(), ids)
    model = load_tiny_model().to(attention_device, dtype)
    found = profile_model(model, ids.to(attention_device))
    assert {layer.backend for layer in found.layers} == {"sdpa"}
    labels = [head.label for head in found.classify()]
    assert labels == [head.label for head in exact.classify()]
    allowed = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}[dtype]
    for name in ("induction", "previous_token", "diagonal", "sink_mass"):
        assert np.abs(found[name] - exact[name]).max() <= allowed, name
