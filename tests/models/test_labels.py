"""Capture and classification name the heads of both models rightly, whatever the period."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attncheck.attention import AttentionMaps
from attncheck.capture import AttentionExtractor, profile_model
from attncheck.evaluate import profile_attention
from attncheck.models import (
    ANALYTIC_HEADS,
    AnalyticTransformer,
    TinyTransformer,
    load_tiny_model,
    repeated_tokens,
    tokens_of,
)
from attncheck.patterns import HeadLabels, classify_heads

TOKENWISE = {"induction", "duplicate_token"}


@pytest.fixture(scope="module")
def tiny() -> TinyTransformer:
    return load_tiny_model()


def capture(model: nn.Module, ids: Tensor) -> AttentionMaps:
    with AttentionExtractor(model) as extractor, torch.no_grad():
        model(ids)
    return extractor.maps


def named(labels: HeadLabels) -> dict[str, str]:
    return {label.name: label.label for label in labels}


@pytest.mark.parametrize("period", [5, 8, 12, 20, 31])
@pytest.mark.parametrize("sharpness", [7.0, 10.0, 30.0])
def test_analytic_heads_get_their_names(sharpness: float, period: int) -> None:
    ids = repeated_tokens(period, seed=period, batch=2)
    maps = capture(AnalyticTransformer(sharpness), ids)
    assert named(classify_heads(maps, tokens=ids)) == dict(ANALYTIC_HEADS)


@pytest.mark.parametrize("period", range(6, 16))
def test_trained_heads_get_their_names(tiny: TinyTransformer, period: int) -> None:
    ids = repeated_tokens(period, seed=40 + period)
    labels = named(classify_heads(capture(tiny, ids), tokens=tokens_of(ids)))
    assert labels["L0H1"] == "previous_token"
    assert labels["L1H0"] == labels["L1H1"] == "induction"
    assert labels["L0H0"] not in {"previous_token", *TOKENWISE}


def test_the_name_induction_goes_when_the_previous_token_head_is_silenced(
    tiny: TinyTransformer,
) -> None:
    ids = repeated_tokens(12, seed=1, batch=4)
    with tiny.ablate("L0H1"):
        labels = classify_heads(capture(tiny, ids), tokens=ids)
    assert labels["L0H1"].label == "previous_token"
    for head in ("L1H0", "L1H1"):
        assert labels[head].label != "induction"
        assert labels[head].score("induction").mass < 0.3
    with tiny.ablate("L0H0"):
        labels = classify_heads(capture(tiny, ids), tokens=ids)
    assert labels["L1H0"].label == labels["L1H1"].label == "induction"


def test_without_a_repeat_nobody_is_called_an_induction_head(tiny: TinyTransformer) -> None:
    order = torch.rand(3, 31, generator=torch.Generator().manual_seed(0)).argsort(-1)
    ids = torch.nn.functional.pad(1 + order, (1, 0))
    for model in (tiny, AnalyticTransformer(10.0)):
        labels = named(classify_heads(capture(model, ids), tokens=ids))
        assert not TOKENWISE & set(labels.values())
        assert "previous_token" in labels.values()


@pytest.mark.parametrize("period", [7, 12, 15])
def test_without_tokens_no_head_is_called_by_a_pattern_of_tokens(
    tiny: TinyTransformer, period: int
) -> None:
    ids = repeated_tokens(period, seed=5, batch=2)
    for model in (tiny, AnalyticTransformer(10.0)):
        bare = list(capture(model, ids))
        with_tokens, without = classify_heads(bare, tokens=ids), classify_heads(bare)
        for known, blind in zip(with_tokens, without, strict=True):
            if known.label not in TOKENWISE:
                assert blind.label == known.label
                continue
            distance = period - (known.label == "induction")
            assert (blind.label, blind.ranked[0].parameter) == ("offset", distance)
            assert not TOKENWISE & {score.pattern for score in blind.ranked}


def test_profile_agrees_with_captured_maps_and_with_the_closed_form() -> None:
    model, ids = AnalyticTransformer(5.0), repeated_tokens(20, seed=2)
    streamed = profile_model(model, ids, tokens=ids)
    stored = profile_attention(capture(model, ids), tokens=ids)
    for name in ("previous_token", "duplicate_token", "induction", "first_token", "entropy"):
        np.testing.assert_allclose(streamed[name], stored[name], rtol=0, atol=1e-12)
    expected = np.mean([np.exp(5) / (np.exp(5) + i) for i in range(1, 41)])
    assert streamed["previous_token"][0, 0] == pytest.approx(expected, abs=1e-12)
    assert streamed["diagonal"][0, 2] == pytest.approx(expected, abs=1e-12)
    assert streamed["first_token"][1, 2] == pytest.approx(expected, abs=1e-12)
    assert streamed["duplicate_token"][0, 1] == pytest.approx(0.785560595369961, abs=1e-12)
    assert streamed["induction"][1, 0] == pytest.approx(0.7091476284129, abs=1e-12)
    assert streamed["normalized_entropy"][1, 1] == pytest.approx(1.0, abs=1e-12)


def test_profiles_of_several_periods_merge_into_the_same_names(tiny: TinyTransformer) -> None:
    prompts = [repeated_tokens(period, seed=period) for period in (6, 9, 11, 13)]
    profile = profile_model(tiny, prompts[0], tokens=prompts[0])
    for ids in prompts[1:]:
        profile = profile.merge(profile_model(tiny, ids, tokens=ids))
    labels = named(profile.classify())
    assert labels["L0H1"] == "previous_token"
    assert labels["L1H0"] == labels["L1H1"] == "induction"


def test_merged_profiles_of_analytic_heads_keep_their_names() -> None:
    model = AnalyticTransformer(10.0)
    prompts = [repeated_tokens(period, seed=period) for period in (6, 9, 11, 13)]
    profile = profile_model(model, prompts[0], tokens=prompts[0])
    for ids in prompts[1:]:
        profile = profile.merge(profile_model(model, ids, tokens=ids))
    assert named(profile.classify()) == dict(ANALYTIC_HEADS)
