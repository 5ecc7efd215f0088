"""Patterns, labels and assertions: the same numbers, labels and messages as on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import attncheck
from attncheck import CHECKS, PATTERNS, create_synthetic_attention
from attncheck.checks import assert_segments_isolated
from tests.devices.support import DTYPES, name_of, on

N = 24
TOKENS = {
    "induction": [place % 8 for place in range(N)],
    "duplicate_token": [place % 8 for place in range(N)],
    "delimiter": ["." if place % 4 == 3 else f"word{place}" for place in range(N)],
}


def synthetic(name: str, device: torch.device | str, **options: Any) -> Tensor:
    tokens = TOKENS.get(name)
    given = {"seed": 0, "causal": PATTERNS[name].direction != "bidirectional", **options}
    return create_synthetic_attention(N, name, 0.1, device=device, tokens=tokens, **given)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("name", PATTERNS)
def test_synthetic_heads_are_named(
    name: str, dtype: torch.dtype, attention_device: torch.device
) -> None:
    found = synthetic(name, attention_device, dtype=dtype)
    expected = synthetic(name, "cpu", dtype=dtype)
    assert found.device.type == attention_device.type
    assert torch.equal(found.cpu(), expected)
    tokens = TOKENS.get(name)
    assert attncheck.identify_attention_pattern(found, tokens=tokens) == name
    ours = attncheck.pattern_scores(found, tokens=tokens)
    theirs = attncheck.pattern_scores(expected, tokens=tokens)
    assert set(ours) == set(theirs)
    for pattern, score in theirs.items():
        assert ours[pattern].mass == pytest.approx(score.mass, abs=1e-5), pattern
        assert ours[pattern].chance == pytest.approx(score.chance, abs=1e-5), pattern


def test_heads_are_classified_with_a_mask(attention_device: torch.device) -> None:
    names = ("first_token", "previous_token", "uniform", "local")
    heads = torch.stack([synthetic(name, "cpu", causal=True) for name in names])[None]
    mask = torch.ones(1, N, dtype=torch.bool)
    found = attncheck.classify_heads(heads.to(attention_device), mask=mask.to(attention_device))
    assert [head.label for head in found] == list(names)
    assert str(found) == str(attncheck.classify_heads(heads, mask=mask))


def samples() -> dict[str, tuple[Any, Any, dict[str, Any]]]:
    """For each check: weights that pass, weights that fail, and its arguments."""
    causal = synthetic("local", "cpu", causal=True, heads=3, batch=2)
    both = create_synthetic_attention(N, "local", 0.2, seed=0, heads=3, batch=2)
    mask = torch.ones(2, N, dtype=torch.bool)
    mask[1, -5:] = False
    padded = causal * mask[:, None, None]
    padded = torch.nan_to_num(padded / padded.sum(-1, keepdim=True))
    blocks = torch.arange(N) // 8
    apart = create_synthetic_attention(N, "block", 0, cuts=[8, 16], batch=2, heads=3)
    broken = causal.clone()
    broken[1, 2, 7] *= 0.5
    first = create_synthetic_attention(N, "first_token", 0.1, causal=True, seed=0, heads=3, batch=2)
    twins = causal[:, [0, 1, 1]]
    window = torch.ones(N, N).tril().triu(-3)
    near = (window / window.sum(-1, keepdim=True)).expand(2, 3, N, N)
    different = torch.stack([causal[:, 0], first[:, 0]], 1)
    return {
        "row_stochastic": (causal, broken, {}),
        "causal": (causal, both, {}),
        "mask_respected": (padded, both, {"mask": mask}),
        "segments_isolated": (apart, both, {"segment_ids": blocks}),
        "sliding_window": (near, causal, {"window": 4}),
        "entropy": (causal, first, {"min": 0.5}),
        "sink_mass": (first, causal, {"min": 0.5}),
        "pattern": (first, causal, {"pattern": "first_token", "min_mass": 0.6}),
        "heads_distinct": (different, twins, {}),
        "attention_close": (causal, both, {"expected": causal}),
    }


def assertion(check: str) -> Any:
    own = {"segments_isolated": assert_segments_isolated}
    return own.get(check) or getattr(attncheck, f"assert_{check}")


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("check", CHECKS)
def test_assertions_pass_and_fail_with_the_same_words(
    check: str, dtype: torch.dtype, attention_device: torch.device
) -> None:
    right, wrong, options = samples()[check]
    right, wrong = right.to(dtype), wrong.to(dtype)
    options = on(torch.device("cpu"), options, dtype)
    moved = on(attention_device, options)
    assertion(check)(right.to(attention_device), **moved)
    with pytest.raises(attncheck.CheckFailure) as ours:
        assertion(check)(wrong.to(attention_device), **moved)
    with pytest.raises(attncheck.CheckFailure) as theirs:
        assertion(check)(wrong, **options)
    assert str(ours.value) == str(theirs.value)
    assert CHECKS[check].run(right.to(attention_device), **moved).passed
