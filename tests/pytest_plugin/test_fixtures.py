"""The fixtures, as a test suite uses them."""

from __future__ import annotations

import re
from pathlib import Path

from attncheck.patterns import PATTERNS
from tests.pytest_plugin.conftest import Run


def test_synthetic_attention_meets_given_and_repeats(run: Run) -> None:
    result = run(
        """
        import torch
        from hypothesis import given, settings, strategies as st
        from attncheck import assert_row_stochastic

        @settings(max_examples=5, deadline=None, database=None)
        @given(n=st.integers(1, 20))
        def test_any_length(synthetic_attention, n):
            assert_row_stochastic(synthetic_attention(n, "uniform"))

        def test_same_call_same_weights(synthetic_attention):
            one, other = (synthetic_attention(8, "local", 0.2, heads=2) for _ in range(2))
            assert torch.equal(one, other)
            assert one.shape == (2, 8, 8)
            assert one.device.type == "cpu"

        def test_a_seed_can_be_given(synthetic_attention):
            one, other = (synthetic_attention(8, seed=seed) for seed in (1, 2))
            assert not torch.equal(one, other)
        """
    )
    result.assert_outcomes(passed=3)


def test_attention_pattern_runs_once_per_pattern(run: Run) -> None:
    result = run(
        """
        from attncheck import assert_row_stochastic, identify_attention_pattern

        def test_valid(attention_pattern):
            assert_row_stochastic(attention_pattern.weights, causal=attention_pattern.causal)
            assert attention_pattern.weights.shape == (24, 24)
            assert len(attention_pattern.tokens) == 24
            assert attention_pattern.create(12, heads=3).shape == (3, 12, 12)
        """,
        "-v",
    )
    result.assert_outcomes(passed=len(PATTERNS))
    for name in PATTERNS:
        assert f"test_it.py::test_valid[{name}] PASSED" in result.stdout.str()


def test_attention_pattern_is_what_it_says(run: Run) -> None:
    result = run(
        """
        from attncheck import identify_attention_pattern

        def test_label(attention_pattern):
            label = identify_attention_pattern(
                attention_pattern.weights,
                tokens=attention_pattern.tokens,
                causal=attention_pattern.causal,
            )
            assert label == attention_pattern.name
        """
    )
    result.assert_outcomes(passed=len(PATTERNS))


def test_a_test_may_choose_patterns(run: Run) -> None:
    result = run(
        """
        import pytest

        @pytest.mark.parametrize("attention_pattern", ["induction", "bos"], indirect=True)
        def test_some(attention_pattern):
            assert attention_pattern.name in ("induction", "first_token")

        @pytest.mark.parametrize(
            ("n", "attention_pattern"), [(1, "block")], indirect=["attention_pattern"]
        )
        def test_pairs(n, attention_pattern):
            assert attention_pattern.name == "block"

        @pytest.mark.parametrize("n", [1, 2])
        def test_all(n, attention_pattern):
            pass
        """
    )
    result.assert_outcomes(passed=3 + 2 * len(PATTERNS))


def test_extractors_are_closed_when_the_test_ends(run: Run) -> None:
    result = run(
        """
        import pytest
        import torch
        from torch import nn
        from attncheck import CaptureError

        MADE = []
        layer = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=8, batch_first=True).eval()

        def test_left_open(attention_extractor):
            MADE.append(attention_extractor(layer))
            MADE[0].register_hooks()
            layer(torch.ones(1, 5, 8))
            assert MADE[0].maps[0].shape == (1, 2, 5, 5)

        def test_closed(attention_extractor):
            with pytest.raises(CaptureError, match="nothing captured yet"):
                MADE[0].maps
            with attention_extractor(layer, heads=[1]) as extractor:
                layer(torch.ones(1, 5, 8))
            assert extractor.maps[0].shape == (1, 1, 5, 5)
            assert attention_extractor(layer).get_attention(torch.ones(1, 3, 8)).n_layers == 1
        """
    )
    result.assert_outcomes(passed=2)


def test_what_the_page_about_fixtures_shows_passes(run: Run) -> None:
    page = Path(__file__).parents[2] / "docs" / "fixtures.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    run("\n".join(blocks)).assert_outcomes(passed=2 + len(PATTERNS) + 2)
