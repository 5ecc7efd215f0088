"""The two ways of summing the rows of a tally, by torch and in a compiled loop, find the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from attncheck.attention import LayerAttention, QueryKey
from attncheck.evaluate import row_sums
from attncheck.evaluate.blocked import profile_blocked, tallies_of
from attncheck.evaluate.dense import profile_layer as profile_dense
from attncheck.evaluate.given import profile_given
from attncheck.evaluate.reach import reach_of
from attncheck.evaluate.row_sums import RowSums, sum_rows
from attncheck.evaluate.tally import Tally
from attncheck.patterns.grid import read_marks
from tests.evaluate.agreement import Drawn, layers

pytest.importorskip("numba")


def both(tally: Tally) -> tuple[RowSums, RowSums]:
    """Sum by torch, and in the loop, whatever made the tally."""
    return sum_rows(replace(tally, looped=False)), sum_rows(replace(tally, looped=True))


def assert_alike(plain: RowSums, compiled: RowSums) -> None:
    near = {"rtol": 1e-10, "atol": 1e-12}
    for name in ("mass", "square", "variance"):
        torch.testing.assert_close(
            getattr(compiled, name), getattr(plain, name), equal_nan=True, **near
        )
    assert list(compiled.totals) == list(plain.totals)
    for name, found in plain.totals.items():
        np.testing.assert_allclose(compiled.totals[name], found, **near, err_msg=name)
    assert list(compiled.measures) == list(plain.measures)
    for name, measure in plain.measures.items():
        other = compiled.measures[name]
        np.testing.assert_array_equal(other.counts, measure.counts, name)
        assert other.counts.dtype == measure.counts.dtype
        np.testing.assert_allclose(other.sums, measure.sums, **near, err_msg=name)
        np.testing.assert_allclose(other.maxima, measure.maxima, **near, err_msg=name)
    for what in ("templates", "resting"):
        every, others = getattr(plain, what), getattr(compiled, what)
        assert list(others) == list(every)
        for name, sums in every.items():
            for part in ("mass", "chance", "rows", "variance"):
                expected, found = getattr(sums, part), getattr(others[name], part)
                np.testing.assert_allclose(found, expected, **near, err_msg=f"{what} {name} {part}")


def tallies(drawn: Drawn, *, fused: bool) -> Iterator[Tally]:
    layer = drawn.layer
    crosses = layer.kind == "cross"
    tokens, segments = (None, None) if crosses else (drawn.tokens, drawn.segment_ids)
    marks = read_marks(layer, tokens, segments, None)
    return tallies_of(layer, reach_of(layer), marks, fused=fused)


@pytest.mark.parametrize("fused", [False, True])
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(drawn=layers(longest=60))
def test_rows_add_up_alike(fused: bool, drawn: Drawn) -> None:
    record = drawn.layer.query_key
    assert record is not None
    if fused and record.computed_in == torch.float64:
        return
    for tally in tallies(drawn, fused=fused):
        assert_alike(*both(tally))


def a_layer(*, causal: bool) -> LayerAttention:
    """Of three heads and two sequences, one of them padded."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 2, 3, 40, 8)
    seen = torch.ones(2, 1, 1, 40, dtype=torch.bool)
    seen[1, ..., :5] = seen[1, ..., -5:] = False
    record = QueryKey(query, key, (0, 1, 2), 0.4, mask=seen)
    return LayerAttention(record, mask=seen, causal=causal, kind="self")


def a_tally(*, causal: bool = True) -> Tally:
    """Of such a layer, with tokens that come again."""
    tokens = [str(number) if number else "." for number in (torch.arange(40) % 7).tolist()]
    return next(tallies(Drawn(a_layer(causal=causal), [tokens]), fused=False))


@pytest.mark.parametrize("causal", [False, True])
def test_what_is_compared_is_not_nothing(causal: bool) -> None:
    tally = a_tally(causal=causal)
    plain, compiled = both(tally)
    assert_alike(plain, compiled)
    padded = ~tally.valid[1, 0]
    assert bool((tally.rows["duplicate_token keys"][1, 0, padded] > 0).any())
    assert set(compiled.templates) == {"duplicate_token", "induction", "delimiter"}
    for sums in (*compiled.templates.values(), *compiled.resting.values()):
        assert (sums.mass > 0).all()
        assert (sums.chance > 0).all()
        assert (sums.rows > 0).all()
        assert (sums.variance > 0).all()
    assert all((measure.counts > 0).all() for measure in compiled.measures.values())


@pytest.mark.parametrize("name", ["top", "mass", "norm", "inner", "first", "far", "later"])
def test_a_number_that_is_nan_is_told(name: str) -> None:
    tally = a_tally()
    tally.rows[name][0, 1, 20] = torch.nan
    plain, compiled = both(tally)
    assert_alike(plain, compiled)
    held = [measure for measure in compiled.measures.values() if np.isnan(measure.sums[1])]
    assert held
    assert all(np.isnan(measure.maxima[1]) for measure in held)
    assert not any(np.isnan(measure.sums[[0, 2]]).any() for measure in compiled.measures.values())


def test_a_row_that_carries_no_attention_is_not_read() -> None:
    tally = a_tally()
    assert not bool(tally.valid[1, :, 2].any())
    for name, held in tally.rows.items():
        if not name.endswith(" keys"):
            held[1, :, 2] = torch.nan
    plain, compiled = both(tally)
    assert_alike(plain, compiled)
    assert not any(np.isnan(measure.sums).any() for measure in compiled.measures.values())


def test_a_loop_goes_on_where_loops_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nowhere else: a small layer, or one in float64, never loads numba."""
    called = []
    original = row_sums._in_loop
    monkeypatch.setattr(row_sums, "_in_loop", lambda tally: called.append(tally) or original(tally))
    layer = a_layer(causal=True)
    profile_blocked(layer)
    assert not called
    profile_blocked(layer, fused=True)
    assert len(called) == 1


@pytest.mark.parametrize("scale", [1e-25, 1e-40, 1e25])
def test_a_row_whose_square_is_out_of_range(scale: float) -> None:
    """A learned sink may leave a row so little that the norm of its weights is 0."""
    tally = a_tally()
    for name in ("mass", "norm", "first", "far", "later"):
        tally.rows[name][0, 1, 20] *= scale
    tally.rows["norm"][0, 2, 20] = tally.rows["mass"][0, 2, 21] = 0
    plain, compiled = both(tally)
    assert_alike(plain, compiled)
    assert np.isinf(compiled.measures["participation_ratio"].maxima[2])


def test_weights_that_were_given() -> None:
    """Whose rows need not sum to 1, and whose sink mass is what was told of them."""
    torch.manual_seed(0)
    weights = torch.randn(2, 3, 50, 50).masked_fill(torch.ones(50, 50).triu(1) > 0, -torch.inf)
    weights = weights.softmax(-1) * 0.75
    layer = LayerAttention(
        weights, causal=True, kind="self", sink_mass=torch.full((2, 3, 50), 0.25)
    )
    found, expected = profile_given(layer), profile_dense(layer)
    assert found is not None
    for name, sums in expected.sums.items():
        if name in found.sums:
            np.testing.assert_allclose(found.sums[name], sums, rtol=1e-5, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(found.evidence.entropy, expected.evidence.entropy, rtol=1e-5)
