"""Profiles by kernels against the float64 dense reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings

from attncheck.attention import LayerAttention, QueryKey
from attncheck.evaluate import blocked, dispatch, operands, tiles
from attncheck.evaluate.assemble import assemble
from attncheck.evaluate.blocked import valid_rows
from attncheck.evaluate.reach import reach_of
from attncheck.evaluate.tally import Tally
from attncheck.evaluate.tiles import tiled_sequences, unfit_for_tiles, walk_tiles
from attncheck.evaluate.trial import departure
from attncheck.kernels.launch import KernelError, Tiles, launch
from attncheck.patterns.grid import read_marks
from attncheck.profile import LayerProfile
from tests.evaluate.agreement import Drawn, assert_agree, layers
from tests.kernels.interpreted import DEVICE

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")  # of its interpreter


@pytest.fixture(autouse=True)
def large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes as long for a small tile as for a large one."""
    if DEVICE == "cpu":
        monkeypatch.setattr(tiles, "tiles_for", lambda *_: [Tiles(128, 64, 4, 1)])


def _on_device(layer: LayerAttention) -> LayerAttention:
    record = layer.query_key
    assert record is not None

    def moved(held: Any) -> Any:
        return held.to(DEVICE) if isinstance(held, torch.Tensor) else held

    parts = ("query", "key", "bias", "mask", "sinks")
    moved_record = replace(record, **{name: moved(getattr(record, name)) for name in parts})
    return LayerAttention(
        moved_record,
        kind=layer.kind,
        mask=moved(layer.mask),
        causal=layer.causal,
        sighted=moved(layer.sighted),
    )


def _tiled(layer: LayerAttention, tokens: Any = None, segment_ids: Any = None) -> LayerProfile:
    """Profile a layer with the kernels, whatever `choose` would say."""
    layer = _on_device(layer)
    assert unfit_for_tiles(layer) is None
    crosses = layer.kind == "cross"
    marks = read_marks(layer, None if crosses else tokens, None if crosses else segment_ids)
    reach = reach_of(layer)
    valid = valid_rows(layer, reach)
    with torch.no_grad():
        tallies = [
            walk_tiles(layer, reach.part(batch), marks.part(batch), valid[batch], batch)
            for batch in tiled_sequences(layer)
        ]
        return assemble(layer, tallies)


def _layer(
    n_query: int,
    n_key: int,
    *,
    heads: int = 2,
    size: int = 16,
    dtype: torch.dtype = torch.float32,
    causal: bool = True,
    mask: torch.Tensor | None = None,
    kind: Any = "self",
    sharpness: float = 1.0,
    scale: float | None = None,
    **record: Any,
) -> LayerAttention:
    generator = torch.Generator().manual_seed(n_query * n_key)
    query = torch.randn(1, heads, n_query, size, generator=generator) * sharpness
    key = torch.randn(1, 1, n_key, size, generator=generator)
    scale = size**-0.5 if scale is None else scale
    held = QueryKey(query.to(dtype), key.to(dtype), (0,) * heads, scale, mask=mask, **record)
    return LayerAttention(held, kind=kind, mask=mask, causal=causal)


def _runs(layer: LayerAttention) -> bool:
    """Whether the kernels run here as on a GPU: the interpreter garbles products of bfloat16."""
    record = layer.query_key
    return DEVICE != "cpu" or record is None or record.query.dtype != torch.bfloat16


def _readable(drawn: Drawn) -> Drawn:
    """What kernels could read of a layer: no bias, and a dtype that runs here."""
    record = drawn.layer.query_key
    assert record is not None
    dtype = {torch.float64: torch.float32, torch.bfloat16: torch.float16}
    sides = {n: getattr(record, n) for n in ("query", "key")}
    sides = {n: held.to(dtype.get(held.dtype, held.dtype)) for n, held in sides.items()}
    return replace(drawn, layer=drawn.layer.changed(weights=replace(record, bias=None, **sides)))


@settings(max_examples=10, suppress_health_check=list(HealthCheck), deadline=None)
@given(layers(longest=90))
def test_agrees_with_the_dense_reference_in_float64(drawn: Drawn) -> None:
    drawn = _readable(drawn)
    assume(unfit_for_tiles(drawn.layer) is None and reach_of(drawn.layer).mask is None)
    found = _tiled(drawn.layer, drawn.tokens, drawn.segment_ids)
    assert_agree(found, drawn.reference(), drawn.layer)


def _window(n: int, width: int) -> torch.Tensor:
    behind = torch.arange(n)[:, None] - torch.arange(n)
    return ((behind >= 0) & (behind < width))[None, None]


LONG = {
    "several tiles": _layer(300, 300),
    "cells of four keys, queries that are the last of them": _layer(290, 530),
    "cells that begin within a tile": _layer(101, 550, heads=1),
    "a window": _layer(400, 400, mask=_window(400, 70), heads=1),
    "more queries than keys": _layer(280, 150, causal=True),
    "both directions": _layer(200, 330, causal=False, kind="cross"),
    "both directions, distances": _layer(270, 270, causal=False, heads=1),
    "heads of no power of two": _layer(150, 150, size=24, heads=1),
    "one query": _layer(1, 300),
    "half precision": _layer(300, 300, dtype=torch.float16),
    "bfloat16": _layer(300, 300, dtype=torch.bfloat16),
    "sharp": _layer(300, 300, sharpness=20.0, heads=1),
    "equal scores": _layer(300, 300, sharpness=0.0, heads=1),
}


@pytest.mark.parametrize("name", [name for name, layer in LONG.items() if _runs(layer)])
def test_agrees_where_rows_span_several_tiles(name: str) -> None:
    drawn = Drawn(LONG[name])
    assert_agree(_tiled(drawn.layer), drawn.reference(), drawn.layer)


def test_targets_of_tokens_and_segments_are_read_across_tiles() -> None:
    n = 300
    tokens = [str(place * place % 17) if place % 5 else "." for place in range(n)]
    drawn = Drawn(_layer(n, n), tokens, [place // 45 for place in range(n)])
    found, expected = _tiled(drawn.layer, drawn.tokens, drawn.segment_ids), drawn.reference()
    assert_agree(found, expected, drawn.layer)
    for name in ("induction", "duplicate_token", "delimiter", "block"):
        assert expected.evidence.templates[name].mass.min() > 1


def test_nothing_is_read_from_padded_queries_and_hidden_keys() -> None:
    n, pad = 200, 80
    layer = _layer(n, n, mask=(torch.arange(n) >= pad)[None, None, None])
    expected = Drawn(layer).reference()
    record = layer.query_key
    assert record is not None
    record.query[:, :, :pad] = torch.nan
    record.key[:, :, :pad] = torch.inf
    assert_agree(_tiled(layer), expected, _layer(n, n))


def test_sums_do_not_depend_on_the_order_of_tiles() -> None:
    layer = _layer(300, 300)
    one, other = _tiled(layer), _tiled(layer)
    assert (one.evidence.columns.mass == other.evidence.columns.mass).all()
    assert (one.evidence.offsets.mass == other.evidence.offsets.mass).all()
    assert (one.evidence.overlap == other.evidence.overlap).all()


def test_what_kernels_cannot_read_is_said() -> None:
    cases = {
        "float64": _layer(4, 4, dtype=torch.float64),
        "a scale above 0, not -1.0": _layer(4, 4, scale=-1.0),
        "add nothing to scores": _layer(4, 4, bias=torch.zeros(1, 1, 4, 4)),
        "heads of 300: kernels take up to 256": _layer(4, 4, size=300),
        "weights are held": LayerAttention(torch.eye(4)[None, None]),
    }
    for words, layer in cases.items():
        assert words in str(unfit_for_tiles(layer))


def test_rows_with_holes_are_refused() -> None:
    holes = torch.tensor([True, False, True, True])[None, None, None]
    layer = _layer(4, 4, causal=False, mask=holes)
    reach = reach_of(layer)
    with pytest.raises(ValueError, match="one stretch of keys"):
        walk_tiles(layer, reach, read_marks(layer), valid_rows(layer, reach), slice(0, 1))


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_VERDICTS", {})


def test_kernels_that_do_not_find_what_torch_finds_are_refused(
    untried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = _layer(100, 100)
    monkeypatch.setattr(operands, "LOG2E", 1.5)
    with pytest.raises(KernelError, match="find another largest score than torch"):
        _tiled(layer)
    monkeypatch.setattr(operands, "LOG2E", 1.4426950408889634)
    with pytest.raises(KernelError, match="find another largest score than torch"):
        _tiled(layer)  # in this form they are not tried again


def _walked(layer: LayerAttention) -> tuple[Tally, QueryKey]:
    layer = _on_device(layer)
    reach, record = reach_of(layer), layer.query_key
    assert record is not None
    walked = walk_tiles(layer, reach, read_marks(layer), valid_rows(layer, reach), slice(0, 1))
    return walked, record


def _with(tally: Tally, name: str, held: torch.Tensor) -> None:
    (tally.rows[name] if name in tally.rows else getattr(tally, name)).copy_(held)


FAULTS = {
    "sum by key": ("columns", lambda held: 0.9 * held),
    "place of sums by key": ("columns", lambda held: held.roll(1, -1)),
    "sum by distance": ("offsets", lambda held: 0.9 * held),
    "distance of sums by distance": ("offsets", lambda held: held.roll(-1, -1)),
    "sum by cell of rows": ("cells", lambda held: held.roll(1, -2)),
    "sum by cell of keys": ("cells", lambda held: held.roll(1, -1)),
    "largest score": ("peak", lambda held: held + 3),
    "weight of the first key": ("first", lambda held: 0 * held),
    "overlap with even attention": ("overlap", lambda held: 0 * held),
    "mean distance": ("far", lambda held: held + 2),
    "norm": ("norm", lambda held: 1.2 * held),
    "entropy": ("inner", lambda held: held + 0.2),
}


@pytest.mark.parametrize("told", FAULTS)
def test_a_trial_tells_what_is_lost_or_lies_elsewhere(told: str) -> None:
    tally, record = _walked(_layer(60, 60, sharpness=0.0))
    assert departure(tally, record, slice(0, 1)) is None
    name, change = FAULTS[told]
    held = tally.rows[name] if name in tally.rows else getattr(tally, name)
    _with(tally, name, change(held.clone()))
    tally = replace(tally)  # what was read of its rows before is forgotten
    assert departure(tally, record, slice(0, 1)) == told


@pytest.mark.parametrize(
    "layer",
    [
        _layer(100, 100, sharpness=1e5),
        _layer(80, 120, scale=1e-3),
        _layer(100, 100, mask=(torch.arange(100) >= 70)[None, None, None]),
        _layer(70, 90, causal=False, kind="cross"),
        _layer(90, 90, causal=False, softcap=2.0),
        _layer(90, 90, sinks=torch.full((1, 2, 1, 1), 2.0)),
    ],
    ids=["sharp", "even", "padded", "cross", "capped", "sinks"],
)
def test_a_trial_raises_no_false_alarm(untried: None, layer: LayerAttention) -> None:
    assert_agree(_tiled(layer), Drawn(layer).reference(), layer)


def test_no_scale_lifts_hidden_keys_to_a_row_of_which_nothing_was_read() -> None:
    from attncheck.kernels.tiles import HIDDEN, NOTHING

    assert HIDDEN.value * 2.0**-30 < NOTHING.value


def test_rows_of_nan_make_what_they_went_into_nan() -> None:
    layer = _layer(80, 80)
    record = layer.query_key
    assert record is not None
    record.query[0, 0, 50] = torch.nan
    tally, _ = _walked(layer)
    for name in ("columns", "offsets", "cells"):
        held = getattr(tally, name)
        assert held[0, 0].isnan().all()
        assert held[0, 1].isfinite().all()
    assert tally.rows["overlap"].isnan().nonzero().tolist() == [[0, 0, 50]]


def test_what_only_rows_that_do_not_count_see_may_hold_anything() -> None:
    n = 120
    layer = _layer(n, n, causal=False)
    sighted = (torch.arange(n) < 70)[None, None]
    seen = (torch.arange(n) < 70) | ~sighted[..., None]
    layer = layer.changed(mask=seen, sighted=sighted)
    expected, _ = _walked(layer)
    record = layer.query_key
    assert record is not None
    record.key[:, :, 70:] = torch.nan
    found, _ = _walked(layer)
    for name in ("columns", "offsets", "cells"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))


def test_a_layer_is_measured_block_by_block_where_kernels_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> Any:
        raise KernelError("OutOfResources: shared memory")

    layer = _layer(40, 40)
    monkeypatch.setitem(dispatch.LEAST, "cpu", 0)
    monkeypatch.setattr(dispatch, "unfit", lambda _: None)
    monkeypatch.setattr(blocked, "walk_fused", fail)
    found = dispatch.profile_layer(layer)
    assert found.evaluator == (
        "blocked: query and key are held; not fused: OutOfResources: shared memory"
    )
    assert_agree(found, Drawn(layer).reference(), layer)


def test_what_a_compiler_cannot_do_is_one_error() -> None:
    class Kernel:
        def __getitem__(self, grid: Any) -> Any:
            return self.fail

        def fail(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("building the launcher:\nFailed to find C compiler.")

    with pytest.raises(KernelError, match=r"^RuntimeError: Failed to find C compiler\.$"):
        launch(Kernel(), (1,), torch.zeros(1))


def test_short_sequences_are_launched_in_parts() -> None:
    record = QueryKey(torch.zeros(9000, 8, 2, 1), torch.zeros(9000, 1, 2, 1), (0,) * 8, 1.0)
    parts = list(tiled_sequences(LayerAttention(record)))
    assert parts[0].stop * 8 < 1 << 16
    assert [part.start for part in parts] == [0, 8191]
