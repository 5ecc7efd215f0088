"""Names of heads: every pattern, refusals, invariances, false alarms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attncheck.attention import LayerAttention
from attncheck.patterns import (
    PATTERNS,
    classify_heads,
    create_synthetic_attention,
    identify_attention_pattern,
    pattern_scores,
    tokens_with_repeats,
)

PLAIN = [
    "diagonal",
    "previous_token",
    "offset",
    "local",
    "first_token",
    "broadcast",
    "block",
    "uniform",
    "mixed",
    "heterogeneous",
]


def build(pattern: str, n: int = 24, causal: bool = True, **options: Any) -> torch.Tensor:
    return create_synthetic_attention(n, pattern, 0.1, causal=causal, seed=5, **options)


def labels_of(attention: Any, **known: Any) -> list[str]:
    return [label.label for label in classify_heads(attention, **known)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n", [8, 16, 100])
@pytest.mark.parametrize("pattern", [*PLAIN, "next_token"])
def test_every_pattern_is_named(pattern: str, n: int, causal: bool) -> None:
    if causal and pattern == "next_token":
        pytest.skip("looks ahead")
    if n == 8 and causal and pattern in ("local", "mixed"):
        pytest.skip("three usable cells: chance is as strong")
    assert identify_attention_pattern(build(pattern, n, causal), causal=causal) == pattern


@pytest.mark.parametrize("pattern", ["induction", "duplicate_token"])
@pytest.mark.parametrize("causal", [False, True])
def test_tokens_turn_an_offset_into_what_it_is(pattern: str, causal: bool) -> None:
    weights = build(pattern, causal=causal)
    assert identify_attention_pattern(weights, causal=causal) == "offset"
    tokens = tokens_with_repeats(24)
    assert identify_attention_pattern(weights, causal=causal, tokens=tokens) == pattern


@pytest.mark.parametrize("pattern", ["induction", "duplicate_token"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("share", [0.45, 0.9])
def test_where_a_head_rests_without_a_target_does_not_matter(
    pattern: str, causal: bool, share: float
) -> None:
    """A fifth of the rows has a target; all others look at the first token alone."""
    tokens = [*range(32), 20, 21, 22, 9, 10, 11, 4, 5]
    n = len(tokens)
    weights = create_synthetic_attention(
        n, pattern, 0.1, causal=causal, tokens=tokens, strength=share, seed=2
    )
    weights[:32] = 0
    weights[:32, 0] = 1
    labels = classify_heads(weights, causal=causal, tokens=tokens)
    assert labels[0].label == pattern
    sink = build("first_token", n, causal)
    assert labels_of(sink, causal=causal, tokens=tokens) == ["first_token"]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n", [64, 200])
@pytest.mark.parametrize(("center", "name"), [(0.5, "local"), (0.58, "local"), (0.7, "diagonal")])
def test_a_diagonal_that_holds_two_thirds_of_its_band_is_named_itself(
    center: float, name: str, n: int, causal: bool
) -> None:
    """Mass falls off by a factor per token, which decides what the diagonal itself holds."""
    decay = 1 - center if causal else (1 - center) / (1 + center)
    for seed in range(5):
        weights = create_synthetic_attention(
            n, "local", 0.1, causal=causal, seed=seed, width=n - 1, decay=decay
        )
        assert identify_attention_pattern(weights, causal=causal) == name


def test_delimiters_need_tokens() -> None:
    tokens = ["." if place in (3, 9, 16) else f"w{place}" for place in range(24)]
    weights = build("delimiter", tokens=tokens)
    assert identify_attention_pattern(weights, causal=True, tokens=tokens) == "delimiter"


def test_fewer_than_eight_positions_are_refused() -> None:
    for n in range(1, 8):
        for pattern in PLAIN:
            for causal in (False, True):
                label = classify_heads(build(pattern, n, causal), causal=causal)[0]
                assert label.label == "undetermined"
                assert "8 positions needed" in label.note


def test_scores_are_ranked_and_complete() -> None:
    scores = pattern_scores(build("previous_token"), causal=True)
    assert next(iter(scores)) == "previous_token"
    assert set(scores) == set(PATTERNS) - {
        "next_token",
        "induction",
        "duplicate_token",
        "delimiter",
    }
    best = scores["previous_token"]
    assert best.mass == pytest.approx(0.9, abs=0.05)
    assert best.lift == pytest.approx((best.mass - best.chance) / (1 - best.chance))
    assert best.strength == pytest.approx(0.9, abs=0.02)
    assert scores["offset"].strength == 0
    far = pattern_scores(build("offset", offset=4), causal=True)
    assert far["offset"].parameter == 4
    assert pattern_scores(build("broadcast", column=6), causal=True)["broadcast"].parameter == 6


@pytest.mark.parametrize("n", [12, 24])
def test_parts_have_the_strength_they_were_built_with(n: int) -> None:
    """Each part takes from what chance expects of the other, which is given back."""
    parts = ("first_token", "previous_token")
    weights = create_synthetic_attention(
        n, "mixed", 0, causal=True, patterns=parts, weights=(1, 2), strength=0.9
    )
    scores = pattern_scores(weights, causal=True)
    assert [scores[part].strength for part in parts] == pytest.approx([0.3, 0.6], abs=0.02)


def test_a_column_is_found_by_what_it_holds_above_chance() -> None:
    """Uniform causal attention alone puts more mass on key 1 than lies on key 12 here."""
    weights = create_synthetic_attention(24, "broadcast", 0, causal=True, column=12, strength=0.12)
    assert pattern_scores(weights, causal=True)["broadcast"].parameter == 12


def test_mixtures_tell_their_parts() -> None:
    label = classify_heads(build("mixed"), causal=True)[0]
    assert label.label == "mixed"
    assert "first_token" in label.note
    assert "previous_token" in label.note
    leader = build("mixed", patterns=("first_token", "previous_token"), weights=(0.75, 0.25))
    assert identify_attention_pattern(leader, causal=True) == "first_token"


def test_segments_given_or_found() -> None:
    weights = build("block", 30, cuts=(7, 19))
    segments = [0] * 7 + [1] * 12 + [2] * 11
    for known in ({}, {"segment_ids": segments}):
        assert classify_heads(weights, causal=True, **known)[0].label == "block"  # type: ignore[arg-type]


def test_one_head_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"holds 2 heads.*classify_heads"):
        identify_attention_pattern(build("local", heads=2))
    with pytest.raises(ValueError, match="holds 2 heads"):
        pattern_scores(build("local", heads=2))


@given(order=st.permutations(range(len(PLAIN))))
def test_permuting_heads_permutes_labels(order: list[int]) -> None:
    heads = torch.stack([build(pattern) for pattern in PLAIN])
    assert labels_of(heads[order], causal=True) == [PLAIN[k] for k in order]


@given(order=st.permutations(range(4)))
def test_the_order_of_a_batch_does_not_matter(order: list[int]) -> None:
    weights = create_synthetic_attention(16, "local", 0.2, batch=4, heads=2, seed=1)
    plain, other = (classify_heads(held) for held in (weights, weights[order]))
    for a, b in zip(plain, other, strict=True):
        assert a.label == b.label
        assert [s.strength for s in a.ranked] == pytest.approx([s.strength for s in b.ranked])


@pytest.mark.parametrize("pattern", PLAIN)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_with_a_mask_keeps_the_label(pattern: str, side: str) -> None:
    pad = (5, 0) if side == "left" else (0, 5)
    weights = torch.nn.functional.pad(build(pattern), pad * 2)
    seen = torch.nn.functional.pad(torch.ones(24, dtype=torch.bool), pad)
    assert labels_of(weights[None, None], mask=seen, causal=True) == [pattern]


@pytest.mark.parametrize("pattern", [p for p in PLAIN if p not in ("block",)])
def test_the_last_rows_of_a_cache_keep_the_label(pattern: str) -> None:
    weights = build(pattern, 64)[-24:]
    assert labels_of(weights, causal=True) == [pattern]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_keeps_the_label(dtype: torch.dtype) -> None:
    heads = torch.stack([build(pattern) for pattern in PLAIN]).to(dtype)
    assert labels_of(heads, causal=True) == PLAIN


def test_cross_attention_is_named_by_columns_only() -> None:
    column = torch.full((1, 1, 9, 12), 0.2 / 12)
    column[..., 4] += 0.8
    layer = LayerAttention(column, kind="cross")
    assert labels_of(layer) == ["broadcast"]
    eye = LayerAttention(torch.eye(12)[None, None], kind="cross")
    assert labels_of(eye) == ["heterogeneous"]


def test_layers_and_heads_are_found_by_name() -> None:
    labels = classify_heads([build("diagonal", heads=2), build("local", heads=2)], causal=True)
    assert labels["L1H0"].label == "local"
    assert labels.array().tolist() == [["diagonal"] * 2, ["local"] * 2]
    assert labels[1:3][0].name == "L0H1"
    assert labels["L1H0"].score("local").mass > 0.5
    with pytest.raises(KeyError, match="no head 'L7H0'"):
        labels["L7H0"]
    with pytest.raises(KeyError, match="no score for 'induction'"):
        labels[0].score("induction")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n", "allowed"), [(8, 0.05), (16, 0.03), (64, 0.01)])
def test_noise_alone_is_rarely_called_a_pattern(n: int, allowed: float, causal: bool) -> None:
    """Even heads under logit noise of sigma 1: at most 5 % (n = 8), 3 % (16), 1 % (64)."""
    weights = create_synthetic_attention(
        n, "uniform", 1.0, noise="logit", causal=causal, heads=300, seed=77
    )
    labels = labels_of(weights, causal=causal)
    wrong = sum(label not in ("uniform", "heterogeneous") for label in labels)
    assert wrong / 300 <= allowed
