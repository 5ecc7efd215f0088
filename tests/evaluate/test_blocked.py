"""The blocked evaluator against the float64 dense reference, and its memory."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from attncheck.attention import LayerAttention, QueryKey
from attncheck.evaluate import choose
from attncheck.evaluate import profile_layer as profile_layer_by_choice
from attncheck.evaluate.blocked import profile_blocked
from attncheck.evaluate.dense import profile_layer
from attncheck.metrics import METRICS
from attncheck.patterns import classify_evidence, create_synthetic_attention
from attncheck.profile import HeadProfile
from tests.evaluate.agreement import Drawn, assert_agree, layers, with_weights


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(layers())
def test_agrees_with_the_dense_reference_in_float64(drawn: Drawn) -> None:
    found = profile_blocked(drawn.layer, drawn.tokens, segment_ids=drawn.segment_ids)
    assert_agree(found, drawn.reference(), drawn.layer)


def _layer(
    n: int, *, heads: int = 2, sharpness: float = 1.0, causal: bool = True, size: int = 8
) -> LayerAttention:
    generator = torch.Generator().manual_seed(n)
    query, key = (torch.randn(1, heads, n, size, generator=generator) for _ in range(2))
    record = QueryKey(query * sharpness, key, tuple(range(heads)), size**-0.5)
    return LayerAttention(record, kind="self", causal=causal)


def _masked(layer: LayerAttention, mask: torch.Tensor) -> LayerAttention:
    return replace(layer, weights=layer.held, mask=mask)


@pytest.mark.parametrize("causal", [True, False])
def test_agrees_over_several_blocks_of_rows(causal: bool) -> None:
    layer = _layer(250, sharpness=4, causal=causal)
    tokens = torch.randint(0, 30, (250,), generator=torch.Generator().manual_seed(1)).tolist()
    found = profile_blocked(layer, tokens)
    assert_agree(found, profile_layer(with_weights(layer), tokens), layer)


@pytest.mark.parametrize("size", [7, 70])
def test_agrees_where_a_window_leaves_the_first_key_behind(size: int) -> None:
    layer = _layer(250, sharpness=4)
    away = torch.arange(250)[:, None] - torch.arange(250)
    layer = _masked(layer, ((away >= 0) & (away < size))[None, None])
    assert_agree(profile_blocked(layer), profile_layer(with_weights(layer)), layer)


def test_measures_all_but_gini() -> None:
    assert set(profile_blocked(_layer(10)).sums) == set(METRICS) - {"gini"}


@pytest.mark.parametrize(
    ("what", "entropy", "largest"),
    [("equal", math.log(50), 1 / 50), ("one-hot", 0.0, 1.0), ("huge", 0.0, 1.0)],
)
def test_adversarial_scores_are_exact(what: str, entropy: float, largest: float) -> None:
    scores = torch.zeros(50, 50)
    if what == "one-hot":
        scores = 100 * torch.eye(50)
    if what == "huge":
        scores = torch.where(torch.eye(50) > 0, 1e4, -1e4)
    record = QueryKey(scores[None, None], torch.eye(50)[None, None], (0,), 1.0)
    found = profile_blocked(LayerAttention(record, kind="self"))
    assert found.value("entropy") == pytest.approx(entropy, abs=1e-6)
    assert found.value("max_weight") == pytest.approx(largest, abs=1e-7)
    assert found.value("row_sum_error") < 1e-6


def test_two_equal_scores_of_ten_thousand_share() -> None:
    scores = torch.full((20, 20), -1e4)
    scores[:, 3] = scores[:, 7] = 1e4
    record = QueryKey(scores[None, None], torch.eye(20)[None, None], (0,), 1.0)
    found = profile_blocked(LayerAttention(record, kind="self"))
    assert found.value("entropy") == pytest.approx(math.log(2), abs=1e-6)
    assert found.evidence.columns.mass[0, [3, 7]] == pytest.approx(10, abs=1e-5)


def test_rows_that_see_one_key_or_none() -> None:
    mask = torch.zeros(1, 1, 30, 30, dtype=torch.bool)
    mask[..., :20, 4] = True
    layer = _masked(_layer(30, causal=False), mask)
    found = profile_blocked(layer)
    assert found.counts["entropy"].tolist() == [1, 1]  # all other own keys are padding
    assert found.value("max_weight").tolist() == [1, 1]
    assert_agree(found, profile_layer(with_weights(layer)), layer)


def test_padding_may_hold_anything() -> None:
    layer = _layer(40)
    record = layer.query_key
    assert record is not None
    mask = (torch.arange(40) >= 6)[None, None, None]
    clean = profile_blocked(_masked(layer, mask))
    query, key = record.query.clone(), record.key.clone()
    query[:, :, :6], key[:, :, :6] = math.nan, math.inf
    dirty = profile_blocked(
        replace(layer, weights=replace(record, query=query, key=key), mask=mask)
    )
    assert dirty.value("entropy").tolist() == clean.value("entropy").tolist()
    assert dirty.evidence.to_dict() == clean.evidence.to_dict()


def test_nan_in_a_row_shows() -> None:
    layer = _layer(40)
    record = layer.query_key
    assert record is not None
    query = record.query.clone()
    query[0, 1, 5] = math.nan
    found = profile_blocked(replace(layer, weights=replace(record, query=query)))
    assert np.isnan(found.value("entropy")).tolist() == [False, True]
    assert not found.evidence.finite[1]


@pytest.mark.parametrize("pattern", ["previous_token", "first_token", "uniform", "local", "block"])
@pytest.mark.parametrize("causal", [True, False])
def test_names_heads_as_the_dense_evaluator_does(pattern: str, causal: bool) -> None:
    weights = create_synthetic_attention(
        96, pattern, causal=causal, noise_level=0.3, seed=3, heads=2, batch=1
    )
    # Any weights are those of a query and key that hold their logarithms.
    scores = weights.clamp(min=1e-30).log()
    record = QueryKey(scores, torch.eye(96).expand(1, 2, 96, 96), (0, 1), 1.0)
    layer = LayerAttention(record, kind="self", causal=causal)
    found = profile_blocked(layer)
    dense = profile_layer(LayerAttention(weights, kind="self", causal=causal))
    labels = [
        classify_evidence([profile.evidence], [(0, 1)], [0]).array().tolist()
        for profile in (found, dense)
    ]
    assert labels[0] == labels[1]
    assert labels[0] == [[pattern, pattern]]


def test_a_layer_that_holds_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="query and key"):
        profile_blocked(LayerAttention(torch.eye(4)[None, None]))


def _peak(n: int, fused: bool) -> int:
    script = (
        "import torch\n"
        "from attncheck.attention import LayerAttention, QueryKey\n"
        "from attncheck.evaluate.blocked import profile_blocked\n"
        "from pathlib import Path\n"
        "def status(field):\n"
        "    lines = Path('/proc/self/status').read_text().splitlines()\n"
        "    return next(int(l.split()[1]) for l in lines if l.startswith(field))\n"
        "def run(n):\n"
        "    q, k = torch.randn(1, 2, n, 16), torch.randn(1, 2, n, 16)\n"
        "    layer = LayerAttention(QueryKey(q, k, (0, 1), 0.25), causal=True)\n"
        f"    profile_blocked(layer, fused={fused})\n"
        "run(256)\n"
        "Path('/proc/self/clear_refs').write_text('5')\n"
        "before = status('VmRSS')\n"
        f"run({n})\n"
        "print(status('VmHWM') - before)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return int(ran.stdout) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("fused", [False, True])
def test_memory_grows_linearly(fused: bool) -> None:
    if fused:
        pytest.importorskip("numba")
    # Several times: what the threads' allocators hold beyond what is used differs between runs.
    short = max(_peak(8192, fused) for _ in range(4))
    long = min(_peak(16384, fused) for _ in range(3))
    one_matrix = 4 * 16384 * 16384
    assert long < one_matrix / 8
    assert long < 2.2 * short


def test_dispatch_says_which_evaluator_and_why() -> None:
    layer = _layer(20)
    blocked, dense = profile_layer_by_choice(layer), profile_layer_by_choice(with_weights(layer))
    assert blocked.evaluator.startswith("blocked: ")
    assert dense.evaluator.startswith("dense: ")
    profile = HeadProfile([blocked])
    assert profile.evaluators == {"layer 0": blocked.evaluator}
    assert HeadProfile.from_dict(profile.to_dict()).evaluators == profile.evaluators
    assert HeadProfile([blocked]).merge(profile).evaluators == profile.evaluators
    assert choose(layer, also=("gini",)).evaluator == "dense"
