"""The table: lookup by name, labels, comparison, and how it prints."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from attncheck.attention import AttentionMaps, LayerAttention
from attncheck.evaluate import profile_attention
from attncheck.metrics import METRICS, row_measures
from attncheck.patterns import classify_heads, create_synthetic_attention
from attncheck.profile import HeadProfile, MeasureChange


def stack(n: int = 16) -> torch.Tensor:
    """(layer 2, head 2): previous token, self; uniform, first token. All causal."""
    lower = torch.ones(n, n).tril()
    previous = torch.eye(n).roll(-1, -1)
    previous[0] = torch.eye(n)[0]
    first = torch.zeros(n, n)
    first[:, 0] = 1
    uniform = lower / lower.sum(-1, keepdim=True)
    heads = torch.stack([previous, torch.eye(n), uniform, first])
    return heads.reshape(2, 1, 2, n, n)


def test_metrics_are_means_over_rows_or_maxima() -> None:
    weights = torch.softmax(torch.randn(2, 2, 3, 6, 6), -1)
    profile = profile_attention(weights, causal=False, also=["gini"])
    for name, metric in METRICS.items():
        rows = torch.stack(row_measures(weights, name, causal=False))
        mean, top = rows.nanmean((1, 3)), rows.nan_to_num(nan=-1).amax((1, 3))
        np.testing.assert_allclose(profile[f"{name}.mean"], mean)
        np.testing.assert_allclose(profile[f"{name}.max"], top)
        np.testing.assert_allclose(profile[name], top if metric.reduce == "max" else mean)


def test_patterns_are_mass_chance_and_lift() -> None:
    profile = profile_attention(stack(), causal=True)
    np.testing.assert_allclose(profile["previous_token"][0], [1, 0])
    np.testing.assert_allclose(profile["diagonal"][0], [0, 1])
    np.testing.assert_allclose(profile["first_token"][1, 1], 1)
    chance = sum(1 / k for k in range(2, 17)) / 15
    np.testing.assert_allclose(profile["previous_token.chance"], chance)
    np.testing.assert_allclose(profile["diagonal.lift"][1, 0], 0, atol=1e-7)
    np.testing.assert_allclose(profile["diagonal.mass"], profile["diagonal"])


def test_aliases_are_taken() -> None:
    profile = profile_attention(stack(), causal=True)
    np.testing.assert_array_equal(profile["bos"], profile["first_token"])


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        ("entropie", "no measure 'entropie'; the measures are row_sum_error, entropy"),
        ("entropy.lift", "entropy has .mean and .max, no .lift"),
        ("diagonal.max", "diagonal has .mass, .chance and .lift, no .max"),
        ("mixed", "'mixed' is a verdict"),
        ("induction", "'induction' cannot be scored here; it needs tokens"),
    ],
)
def test_an_unknown_measure_says_what_there_is(measure: str, message: str) -> None:
    with pytest.raises(KeyError, match=message):
        profile_attention(stack())[measure]


def test_what_only_some_layers_have_is_nan_in_the_others() -> None:
    weights = torch.full((1, 1, 4, 4), 0.25)
    kinds = ("self", "cross")
    maps = AttentionMaps(
        LayerAttention(weights, index=i, kind=kind)  # type: ignore[arg-type]
        for i, kind in enumerate(kinds)
    )
    profile = profile_attention(maps, tokens=list("abab"))
    for measure in ("diagonal", "induction", "mean_distance"):
        assert np.isnan(profile[measure]).tolist() == [[False], [True]], measure
    assert "induction" in profile.measures


def test_a_head_without_rows_has_no_values() -> None:
    weights = torch.zeros(2, 4, 4)
    weights[1] = torch.eye(4)
    profile = profile_attention(weights, causal=False)
    for measure in ("entropy", "row_sum_error", "row_sum_error.mean", "entropy.max"):
        assert np.isnan(profile[measure]).tolist() == [[True, False]], measure


def test_labels_without_any_matrix() -> None:
    labels = profile_attention(stack(), causal=True).classify()
    assert labels.array().tolist() == classify_heads(stack(), causal=True).array().tolist()
    assert [label.name for label in labels] == ["L0H0", "L0H1", "L1H0", "L1H1"]
    assert labels["L0H0"].label == "previous_token"
    assert labels["L1H0"].label == "uniform"


def test_labels_of_merged_parts() -> None:
    parts = [
        profile_attention(create_synthetic_attention(n, "diagonal", seed=n), causal=False)
        for n in (12, 20, 33)
    ]
    whole = parts[0].merge(parts[1]).merge(parts[2])
    assert whole.classify()["L0H0"].label == "diagonal"


def test_names_and_heads() -> None:
    profile = profile_attention(stack())
    assert profile.names == ("layer 0", "layer 1")
    assert profile.heads() == ("L0H0", "L0H1", "L1H0", "L1H1")
    head = profile.head("L1H0")
    assert head["normalized_entropy"] == pytest.approx(1)
    assert set(head) == set(profile.measures)
    with pytest.raises(KeyError, match="no head 'L2H0'; the heads are L0H0 to L1H1"):
        profile.head("L2H0")


def test_heads_keep_the_numbers_of_the_model() -> None:
    layer = LayerAttention(torch.eye(4).repeat(1, 2, 1, 1), index=5, heads=(3, 7))
    assert profile_attention(layer).heads() == ("L5H3", "L5H7")
    assert {change.name for change in _compare(layer)} == {"L5H7"}


def _compare(layer: LayerAttention) -> list[MeasureChange]:
    weights = layer.weights.clone()
    weights[:, 1] = 0.25
    other = LayerAttention(weights, index=layer.index, heads=layer.heads)
    return profile_attention(layer, causal=False).compare(profile_attention(other, causal=False))


def test_compare_finds_the_head_that_changed_largest_first() -> None:
    before = stack()
    after = before.clone()
    after[1, 0, 1] = 0.9 * before[1, 0, 1] + 0.1 * before[0, 0, 1]
    changes = profile_attention(before, causal=True).compare(profile_attention(after, causal=True))
    assert {change.name for change in changes} == {"L1H1"}
    sizes = [change.size for change in changes]
    assert sizes == sorted(sizes, reverse=True)
    by_measure = {change.measure: change for change in changes}
    assert by_measure["first_token"].change == pytest.approx(-0.1)
    assert by_measure["sink_mass"].before == 1
    assert by_measure["diagonal"].after == pytest.approx(0.1)
    assert "future_mass" not in by_measure


def test_compare_chosen_measures_and_nothing_changed() -> None:
    profile = profile_attention(stack())
    assert profile.compare(profile) == []
    other = profile_attention(stack().flip(2))
    assert {change.measure for change in profile.compare(other, ["entropy"])} == {"entropy"}
    with pytest.raises(KeyError, match="no measure 'nope'"):
        profile.compare(other, ["nope"])
    with pytest.raises(ValueError, match="both must be of the same model"):
        profile.compare(profile_attention(torch.eye(16)))


def test_size_of_a_change() -> None:
    def size(before: float, after: float) -> float:
        return MeasureChange("m", 0, 0, before, after).size

    assert size(0.2, 0.5) == pytest.approx(0.3)
    assert size(50, 100) == pytest.approx(0.5)
    assert size(math.nan, math.nan) == size(math.inf, math.inf) == 0
    assert size(1.0, math.inf) == size(-math.inf, math.inf) == math.inf
    assert size(math.nan, 0.5) == size(0.5, math.nan) == math.inf


def test_repr_says_how_much_it_has_seen() -> None:
    one = profile_attention(stack())
    assert repr(one) == "HeadProfile(2 layers, 4 heads, 16 rows each, float32)"
    assert repr(one.merge(one)) == "HeadProfile(2 layers, 4 heads, 32 rows each, float32)"


def test_table_is_plain_text() -> None:
    table = profile_attention(stack(), causal=True).table(["effective_keys", "diagonal.lift"])
    assert table.splitlines() == [
        "head     effective_keys  diagonal.lift",
        "L0H0              1.000         -0.188",
        "L0H1              1.000          1.000",
        "L1H0              8.500         -0.000",
        "L1H1              1.000         -0.188",
    ] or table.splitlines()[3].split() == ["L1H0", "8.500", "0.000"]
    padded = torch.zeros(1, 4, 4)
    line = profile_attention(padded, causal=False).table().splitlines()[1]
    assert line.split() == ["L0H0", "-", "-", "-", "-", "-"]


def test_an_empty_profile_is_refused() -> None:
    with pytest.raises(ValueError, match="layers: empty"):
        HeadProfile([])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p[0], r"measure: 0 is int; expected .* profile\.layers, heads in profile\.head"),
        (lambda p: p.table(3), "measures: 3 is int; expected names of measures"),
        (lambda p: p.table([3]), "measures: 3 is int; expected names of measures"),
        (lambda p: p.compare(p, 3), "measures: 3 is int; expected names of measures"),
        (
            lambda p: profile_attention(torch.eye(4), also=3),
            "also: 3 is int; expected names of measures",
        ),
        (
            lambda p: profile_attention(torch.eye(4), segment_ids=3),
            "segment_ids: 3 is int; expected one entry per key",
        ),
        (
            lambda p: profile_attention(torch.eye(4), segment_ids=torch.tensor(3)),
            r"segment_ids: tensor\(3\) is Tensor; expected one entry per key",
        ),
    ],
)
def test_what_is_no_name_or_list_is_refused_by_its_name(
    call: Callable[[HeadProfile], object], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        call(profile_attention(torch.eye(4)))


def test_one_name_is_a_list_of_one() -> None:
    profile = profile_attention(stack())
    assert profile.table("entropy") == profile.table(["entropy"])
    assert profile.compare(profile_attention(stack().flip(0)), "entropy")
    sorting = profile_attention(stack(), also="gini").layers[0]
    assert sorting.evaluator == "dense: gini: sorts whole rows of weights"


def test_repr_of_a_layer_says_what_it_is_and_how_much_it_has_seen() -> None:
    layer = profile_attention(stack()).layers[1]
    assert repr(layer) == (
        "LayerProfile(1: 'layer 1', 2 heads, 16 rows each, float32, unknown, causal)"
    )
