"""What layers share of what they see is theirs: nothing of another mask, length or kind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses import FakeTensorMode

from attncheck.attention import LayerAttention, QueryKey
from attncheck.evaluate.blocked import profile_blocked, valid_rows
from attncheck.evaluate.chances import chances_of
from attncheck.evaluate.reach import reach_of
from tests.evaluate.agreement import Drawn, assert_agree


def _layer(n_query: int, n_key: int, *, causal: bool, kind: str = "self") -> LayerAttention:
    generator = torch.Generator().manual_seed(n_query + n_key)
    query = torch.randn(2, 3, n_query, 8, generator=generator)
    key = torch.randn(2, 3, n_key, 8, generator=generator)
    record = QueryKey(query, key, (0, 1, 2), 0.5)
    return LayerAttention(record, causal=causal, kind=kind)  # type: ignore[arg-type]


def _padded(layer: LayerAttention) -> LayerAttention:
    mask = torch.ones(2, 1, 1, layer.n_key, dtype=torch.bool)
    mask[1, ..., :9] = False
    return replace(layer, weights=layer.held, mask=mask)


def test_layers_that_see_the_same_share_it() -> None:
    first, second = (_layer(40, 40, causal=True) for _ in range(2))
    assert reach_of(first) is reach_of(second)
    usable = valid_rows(first, reach_of(first)) & (reach_of(first).seen >= 2)
    held = chances_of(reach_of(first), usable, positional=True)
    assert held is chances_of(reach_of(second), usable.clone(), positional=True)


@pytest.mark.parametrize(
    "between",
    [
        _padded(_layer(40, 40, causal=True)),
        _layer(40, 40, causal=False),
        _layer(40, 40, causal=False, kind="cross"),
        _layer(39, 40, causal=True),
        _layer(40, 41, causal=True),
        _layer(1, 40, causal=True),
    ],
    ids=["padded", "not causal", "cross", "fewer queries", "more keys", "one query"],
)
def test_nothing_is_left_of_the_layer_before(between: LayerAttention) -> None:
    plain = _layer(40, 40, causal=True)
    for layer in (plain, between, plain, _padded(plain), between):
        assert_agree(profile_blocked(layer), Drawn(layer).reference(), layer)


def test_rows_that_do_not_count_are_not_counted_though_others_see_the_same() -> None:
    layer = _layer(40, 40, causal=True)
    reach = reach_of(layer)
    usable = (valid_rows(layer, reach) & (reach.seen >= 2)).clone()
    every = chances_of(reach, usable, positional=True)
    usable[1, 2, 5] = False
    some = chances_of(reach, usable, positional=True)
    assert [every.sums[0].tolist(), some.sums[0].tolist()] == [[78] * 3, [78, 78, 77]]
    assert some.columns.by_head[1][:, 3].tolist() == [74, 74, 73]


def test_what_a_fake_tensor_mode_made_is_not_kept() -> None:
    with FakeTensorMode():
        reach_of(_layer(33, 40, causal=True))
    layer = _layer(33, 40, causal=True)
    assert_agree(profile_blocked(layer), Drawn(layer).reference(), layer)


def test_distances_are_counted_apart_from_where_they_mean_nothing() -> None:
    whole = _layer(40, 40, causal=False)
    crossing = _layer(40, 40, causal=False, kind="cross")
    for layer in (whole, crossing, whole):
        assert_agree(profile_blocked(layer), Drawn(layer).reference(), layer)
