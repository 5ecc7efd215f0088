"""Rules about keys that a query must not attend to: causal, mask, window, segments."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attncheck.attention import AttentionMaps, LayerAttention
from attncheck.checks import (
    assert_causal,
    assert_mask_respected,
    assert_segments_isolated,
    assert_sliding_window,
    check_causal,
    check_mask_respected,
    check_segments_isolated,
    check_sliding_window,
    render,
)
from attncheck.errors import CheckFailure
from attncheck.tolerances import tolerance_for
from tests.checks.samples import DTYPES, causal_weights, random_weights


def test_causal_message_word_for_word() -> None:
    weights = causal_weights(2, 4, 16)
    weights[1, 3, 2, 7], weights[1, 3, 1, 5], weights[0, 1, 4, 6] = 0.0413, 0.0203, 0.0300
    tokens = [f"tok{place}" for place in range(16)]
    with pytest.raises(CheckFailure) as caught:
        assert_causal(weights, tokens=tokens)
    assert str(caught.value) == (
        "not causal: 3 of 960 future weights > 1e-05\n"
        "\n"
        "  attn   f32[2,4,16,16] (batch, head, query, key)\n"
        "  rule   attn[..., query, key] <= 1e-05 where key > query\n"
        "\n"
        "  head  future mass  weights  worst\n"
        "  L0H3       0.0019        2  0.0413 at batch 1, query 2 -> key 7\n"
        "  L0H1      9.4e-04        1  0.0300 at batch 0, query 4 -> key 6\n"
        "  2 of 4 heads pass\n"
        "  worst  query 2 'tok2' -> key 7 'tok7'\n"
        "  next   add -inf to the scores of later keys before softmax"
    )


def test_causal_numbers_equal_plain_loops() -> None:
    weights = random_weights(2, 3, 5, 7)
    finding = check_causal(weights)
    for offender in finding.offenders:
        head = int(offender.head.removeprefix("L0H"))
        total, count, worst, where = 0.0, 0, -1.0, None
        for b in range(2):
            for q in range(5):
                for k in range(7):
                    value = float(weights[b, head, q, k])
                    if k > q + 2:
                        total += value
                        count += value > 1e-5
                        if value > worst:
                            worst, where = value, (b, q, k)
        assert offender.values[0] == pytest.approx(total / 10, rel=1e-6)
        assert offender.values[1] == count
        assert offender.worst == worst
        assert (offender.at.batch, offender.at.query, offender.at.key) == where
    masses = [offender.values[0] for offender in finding.offenders]
    assert len(masses) == 3
    assert masses == sorted(masses, reverse=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_limit_belongs_to_the_dtype_and_is_inclusive(dtype: torch.dtype) -> None:
    limit = torch.tensor(tolerance_for(dtype).atol, dtype=dtype)
    weights = causal_weights(dtype=dtype)
    weights[0, 0, 0, 1] = limit
    assert_causal(weights)
    weights[0, 0, 0, 1] = torch.nextafter(limit.float(), torch.tensor(1.0)) * 1.02
    with pytest.raises(CheckFailure):
        assert_causal(weights)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_given_atol_is_used(dtype: torch.dtype) -> None:
    weights = causal_weights(dtype=dtype)
    weights[0, 0, 0, 1] = 0.125
    assert_causal(weights, atol=0.125)
    with pytest.raises(CheckFailure, match=r"> 0\.12\b"):
        assert_causal(weights, atol=0.12)


def test_many_weights_too_small_to_count_add_up() -> None:
    weights = torch.zeros(1, 1, 64, 64)
    weights += torch.full((64, 64), 9e-6).triu(1)
    weights[..., 0] = 1 - weights[..., 1:].sum(-1)
    with pytest.raises(CheckFailure, match=r"not causal: \d+ of 2016 future weights add up"):
        assert_causal(weights)
    assert_causal(weights, atol=1e-5)


def test_negative_weights_are_found() -> None:
    weights = causal_weights()
    weights[1, 2, 3, 6] = -0.5
    with pytest.raises(CheckFailure, match="1 of 224 future") as caught:
        assert_causal(weights)
    finding = caught.value.finding
    assert [offender.head for offender in finding.offenders] == ["L0H2"]
    at = finding.offenders[0].at
    assert (at.batch, at.query, at.key) == (1, 3, 6)
    assert not check_causal(weights, atol=0.4).passed


def test_with_fewer_queries_than_keys_the_queries_are_the_last() -> None:
    weights = causal_weights(n=8)
    assert_causal(weights[:, :, 5:])
    assert_causal(weights[:, :, 7:])
    step = weights[:, :, 5:].clone()
    step[0, 0, 1, 7] = 0.1
    with pytest.raises(CheckFailure, match=r"where key > query \+ 5") as caught:
        assert_causal(step)
    assert caught.value.finding.offenders[0].at.query == 1


def test_causal_passes_on_a_single_token_and_refuses_what_has_no_order() -> None:
    assert_causal(torch.ones(1, 1))
    cross = LayerAttention(random_weights(1, 2, 4, 4), kind="cross")
    with pytest.raises(ValueError, match="only cross-attention"):
        assert_causal(cross)
    with pytest.raises(ValueError, match="5 queries but only 3 keys"):
        assert_causal(random_weights(5, 3))
    own = LayerAttention(causal_weights(1, 2, 4), index=0)
    maps = AttentionMaps([own, LayerAttention(random_weights(1, 2, 4, 4), index=1, kind="cross")])
    assert check_causal(maps).n_total == 2
    assert_causal(maps)


def test_rows_that_see_no_key_are_left_out() -> None:
    weights = causal_weights(1, 2, 4)
    weights[:, :, 0] = math.nan
    mask = torch.tensor([0, 1, 1, 1])
    with pytest.raises(CheckFailure):
        assert_causal(weights)
    assert_causal(weights, mask=mask)
    assert_mask_respected(weights.masked_fill(torch.arange(4) == 0, 0).nan_to_num(0), mask)
    with pytest.raises(ValueError, match="fully masked"):
        assert_causal(weights, mask=torch.zeros(4, dtype=torch.int))


def eager_weights(mask: torch.Tensor, window: int) -> torch.Tensor:
    """Causal windowed softmax as eager models do it: a row that sees no key is uniform."""
    n = mask.shape[-1]
    places = torch.arange(n)
    back = places[:, None] - places
    seen = (back >= 0) & (back < window) & mask.bool()[:, None, None, :]
    scores = random_weights(mask.shape[0], 2, n, n)
    return scores.masked_fill(~seen, torch.finfo(torch.float32).min).softmax(-1)


@pytest.mark.parametrize(("first", "last"), [(5, 12), (0, 7)], ids=["left", "right"])
def test_padded_queries_of_eager_models_are_left_out(first: int, last: int) -> None:
    mask = torch.zeros(2, 12, dtype=torch.int64)
    mask[0], mask[1, first:last] = 1, 1
    weights = eager_weights(mask, window=4)
    assert weights[1, 0, 0 if first else 11].std() < 1e-6
    for attn in (weights, LayerAttention(weights, kind="self", causal=True)):
        assert_causal(attn, mask=mask)
        assert_mask_respected(attn, mask)
        assert_sliding_window(attn, 4, mask=mask)
    weights[1, 1, 6, 7 if first else 4] += 0.5
    weights[1, 1, 6, 3 if first else 8] += 0.5
    with pytest.raises(CheckFailure, match=r"1 of .* hidden"):
        assert_mask_respected(weights, mask)


def test_few_queries_over_padded_keys_are_judged() -> None:
    pooled = torch.tensor([[0.5, 0.3, 0.2, 0.0]])
    assert_mask_respected(pooled, torch.tensor([1, 1, 1, 0]))
    with pytest.raises(CheckFailure, match="1 of 2 hidden"):
        assert_mask_respected(pooled, torch.tensor([1, 1, 0, 0]))


def test_layers_and_chosen_heads() -> None:
    layers = [causal_weights(seed=seed) for seed in range(3)]
    layers[1][0, 2, 1, 4] = 0.5
    with pytest.raises(CheckFailure, match="L1H2") as caught:
        assert_causal(layers)
    assert "3 layers of f32[2,4,8,8]" in str(caught.value)
    assert "11 of 12 heads pass" in str(caught.value)
    assert_causal(layers, heads=["L0", "L2", "L1H0", (1, 1), "L1H3"])
    with pytest.raises(CheckFailure):
        assert_causal(layers, heads=2)
    assert check_causal(layers, heads=2).n_total == 3


def test_mask_is_judged_on_hidden_keys_only() -> None:
    weights = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.7, 0.1], [0.3, 0.6, 0.1]])
    mask = torch.tensor([True, True, False])
    with pytest.raises(CheckFailure, match="not masked: 1 of 2 hidden") as caught:
        assert_mask_respected(weights, mask)
    assert caught.value.finding.offenders[0].at.query == 1
    weights[1] = torch.tensor([0.2, 0.8, 0.0])  # the row of the padded token itself is free
    assert_mask_respected(weights, mask)
    two_rows = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 1]])
    assert_mask_respected(weights, two_rows[None, None])
    with pytest.raises(ValueError, match="hides no key"):
        assert_mask_respected(weights, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask: none given"):
        assert_mask_respected(weights)
    with pytest.raises(ValueError, match=r"mask: shape \(4,\)"):
        assert_mask_respected(weights, torch.ones(4, dtype=torch.bool))


def test_mask_that_maps_carry_is_used() -> None:
    weights = random_weights(1, 2, 3, 3)
    mask = torch.tensor([True, True, False])[None, None, None]
    with pytest.raises(CheckFailure, match="4 of 4 hidden"):
        assert_mask_respected(LayerAttention(weights, mask=mask))


def test_mask_per_head_follows_chosen_heads() -> None:
    weights = torch.full((1, 2, 2, 2), 0.5)
    mask = torch.ones(1, 2, 2, 2, dtype=torch.bool)
    mask[0, 1, :, 1] = False
    assert [o.head for o in check_mask_respected(weights, mask).offenders] == ["L0H1"]
    with pytest.raises(ValueError, match="hides no key"):
        check_mask_respected(weights, mask, heads=0)
    assert not check_mask_respected(weights, mask, heads=1).passed


@pytest.mark.parametrize(
    ("window", "inside"),
    [
        (1, lambda q, k: q == k),
        (3, lambda q, k: abs(q - k) < 3),
        ((2, 0), lambda q, k: 0 <= q - k <= 2),
        ((0, 3), lambda q, k: 0 <= k - q <= 3),
        ((-1, 1), lambda q, k: k - q <= 1),
        ((2, -1), lambda q, k: q - k <= 2),
    ],
)
@pytest.mark.parametrize("n_query", [8, 3])
def test_every_window_allows_exactly_its_keys(
    window: int | tuple[int, int], inside: Callable[[int, int], bool], n_query: int
) -> None:
    for q in range(n_query):
        for k in range(8):
            weights = torch.zeros(n_query, 8)
            weights[q, k] = 1.0
            passed = check_sliding_window(weights, window).passed
            assert passed == inside(q + 8 - n_query, k), (q, k)


def test_window_arguments() -> None:
    weights = causal_weights()
    assert "|query - key| > 2" in render(check_sliding_window(weights, 3))
    assert "query - key > 2 or key - query > 0" in check_sliding_window(weights, (2, 0)).rule
    with pytest.raises(ValueError, match="covers every key"):
        assert_sliding_window(weights, 8)
    with pytest.raises(ValueError, match="1 key at least"):
        assert_sliding_window(weights, 0)
    with pytest.raises(ValueError, match="-1 for no limit"):
        assert_sliding_window(weights, (-2, 0))
    rule = check_sliding_window(weights, 3).rule
    for whole in (np.int64(3), torch.tensor(3)):
        assert check_sliding_window(weights, whole).rule == rule  # type: ignore[arg-type]
    for wrong in ("3", 2.0, True, (1, 2.0), (1, 2, 3), ()):
        with pytest.raises(TypeError, match=r"window: .* expected an integer or \(before, after\)"):
            assert_sliding_window(weights, wrong)  # type: ignore[arg-type]


def test_segments() -> None:
    packed = torch.block_diag(torch.full((2, 2), 0.5), torch.full((3, 3), 1 / 3))
    assert_segments_isolated(packed, torch.tensor([7, 7, 2, 2, 2]))
    assert_segments_isolated(packed[3:], [7, 7, 2, 2, 2])
    leak = packed.clone()
    leak[3, 1] = 0.2
    with pytest.raises(CheckFailure, match="not isolated: 1 of 12 foreign") as caught:
        assert_segments_isolated(leak, [0, 0, 1, 1, 1])
    assert (
        caught.value.finding.offenders[0].at.query,
        caught.value.finding.offenders[0].at.key,
    ) == (3, 1)
    batch = torch.stack([packed, packed])[:, None]
    assert_segments_isolated(batch, [[0, 0, 1, 1, 1], [4, 4, 0, 0, 0]])
    assert not check_segments_isolated(batch, [[0, 0, 1, 1, 1], [0, 0, 0, 1, 1]]).passed
    with pytest.raises(ValueError, match="one segment only"):
        assert_segments_isolated(packed, [0] * 5)
    with pytest.raises(ValueError, match="one id per key"):
        assert_segments_isolated(packed, [0] * 4)
    with pytest.raises(TypeError, match=r"segment_ids: is torch\.float32"):
        assert_segments_isolated(packed, [0.0] * 5)
    for wrong in (None, "aabbb", [["a"] * 5]):
        with pytest.raises(TypeError, match=r"segment_ids: got .* expected integers"):
            assert_segments_isolated(packed, wrong)


@pytest.mark.parametrize("atol", [-1.0, math.nan, math.inf])
def test_wrong_atol(atol: float) -> None:
    assert_causal(causal_weights(), atol=np.float32(1e-4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="atol: got"):
        assert_causal(causal_weights(), atol=atol)
    with pytest.raises(TypeError, match="atol: got str"):
        assert_causal(causal_weights(), atol="1e-3")  # type: ignore[arg-type]


@given(data=st.data())
def test_a_planted_future_weight_is_found_where_it_was_planted(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 9), label="n")
    layers = data.draw(st.integers(1, 3), label="layers")
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 4)), label="batch, heads")
    held = [causal_weights(*shape, n, seed=seed) for seed in range(layers)]
    layer = data.draw(st.integers(0, layers - 1), label="layer")
    batch = data.draw(st.integers(0, shape[0] - 1), label="batch")
    head = data.draw(st.integers(0, shape[1] - 1), label="head")
    query = data.draw(st.integers(0, n - 2), label="query")
    key = data.draw(st.integers(query + 1, n - 1), label="key")
    held[layer][batch, head, query, key] = data.draw(st.floats(1e-4, 1), label="weight")
    finding = check_causal(held)
    assert [offender.head for offender in finding.offenders] == [f"L{layer}H{head}"]
    at = finding.offenders[0].at
    assert (at.batch, at.query, at.key) == (batch if shape[0] > 1 else None, query, key)
    assert finding.n_passed == finding.n_total - 1
    evidence = finding.evidence
    assert evidence is not None
    assert evidence.offending.nonzero()[0].tolist() == [query]
    assert evidence.offending.nonzero()[1].tolist() == [key]


@given(order=st.permutations(range(5)), seed=st.integers(0, 99))
def test_permuting_heads_permutes_offenders(order: list[int], seed: int) -> None:
    weights = random_weights(1, 5, 6, 6, seed=seed)
    weights[:, 2] = causal_weights(1, 1, 6)[:, 0]
    before = {o.head: (o.values, o.worst, o.at) for o in check_causal(weights).offenders}
    after = {o.head: (o.values, o.worst, o.at) for o in check_causal(weights[:, order]).offenders}
    assert len(before) == 4
    assert after == {
        f"L0H{place}": before[f"L0H{head}"] for place, head in enumerate(order) if head != 2
    }


def test_evidence_is_a_small_copy_of_the_right_place() -> None:
    weights = torch.eye(1300)[None, None].repeat(1, 2, 1, 1)
    weights[0, 1, 900, 1200] = 0.5
    finding = check_causal(weights.requires_grad_())
    evidence = finding.evidence
    assert evidence is not None
    assert evidence.weights.shape == (512, 512)
    assert evidence.weights[900 - evidence.query_start, 1200 - evidence.key_start] == 0.5
    assert evidence.offending.sum() == 1
    assert not evidence.visible[900 - evidence.query_start, 1200 - evidence.key_start]
    with torch.no_grad():
        weights[0, 1, 900, 1200] = 0
    assert evidence.weights.max() == 1.0
    assert (evidence.weights == 0.5).sum() == 1
    assert not any(isinstance(value, torch.Tensor) for value in vars(finding).values())
