"""Compiled sums and cuts on a grid of cells find what torch finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attncheck.evaluate import segments as of_evaluators
from attncheck.evaluate.reach import Reach
from attncheck.patterns import segments as of_patterns
from attncheck.patterns import thresholds
from attncheck.patterns.cells import CellGrid

pytest.importorskip("numba")

SIZE = 140


@pytest.fixture
def both_ways(monkeypatch: pytest.MonkeyPatch):
    """Call a function without and with compiled loops."""

    def both(function):
        found = []
        for why_not in ("numba is not installed", None):
            monkeypatch.setattr(of_patterns, "missing", lambda why_not=why_not: why_not)
            found.append(function())
        return found

    return both


def blocks(item: int, noise: float) -> torch.Tensor:
    """Excess of attention within blocks of some sizes, queries first."""
    rng = np.random.default_rng(item)
    edges = np.sort(rng.choice(np.arange(8, SIZE - 8), item % 5, replace=False))
    number = np.searchsorted(edges, np.arange(SIZE), side="right")
    inside = (number[:, None] == number).astype(float)
    excess = inside / inside.sum(1, keepdims=True) - 1 / SIZE
    return torch.from_numpy(excess + noise * rng.normal(size=(SIZE, SIZE)) / SIZE)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("noise", [0.0, 0.5, 5.0])
def test_cuts_are_those_of_all_items_at_once(both_ways, causal: bool, noise: float) -> None:
    excess = torch.stack([blocks(item, noise) for item in range(8)])
    sums = torch.nn.functional.pad(excess.cumsum(-1).cumsum(-2), (1, 0, 1, 0))
    spread = torch.rand(8, SIZE + 1, dtype=torch.float64).cumsum(-1) * 1e-6 * (1 + noise)
    keys = torch.arange(SIZE + 1).expand(8, -1).contiguous()
    keys = torch.stack([keys[0], *(keys[i].clamp(min=i) - i for i in range(1, 8))])
    assert sums.numel() >= of_patterns.MANY
    plain, compiled = both_ways(lambda: of_patterns.cut(sums, spread, keys, causal=causal))
    assert torch.equal(plain.begin, compiled.begin)
    assert torch.equal(plain.end, compiled.end)
    torch.testing.assert_close(plain.gain, compiled.gain, rtol=1e-12, atol=0)
    if noise < 1:
        assert plain.begin.unique(dim=-1).shape[-1] > 1, "nothing was cut"


def test_no_more_cuts_than_are_allowed(both_ways, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thresholds, "MAX_CUTS", 2)
    excess = torch.stack([blocks(4, 0.0)] * 4)
    sums = torch.nn.functional.pad(excess.cumsum(-1).cumsum(-2), (1, 0, 1, 0))
    spread, keys = torch.zeros(4, SIZE + 1).double(), torch.arange(SIZE + 1).expand(4, -1)
    for found in both_ways(lambda: of_patterns.cut(sums, spread, keys, causal=False)):
        assert len(found.begin[0].unique()) == 3


@pytest.mark.parametrize("shift", [0, 3])
def test_running_sums_and_stretches(both_ways, shift: int) -> None:
    cells = torch.randn(2, 4, 100, 100 + shift, dtype=torch.float64)
    rows = (torch.arange(101 + shift) - shift).clamp(min=0)
    plain, compiled = both_ways(lambda: of_patterns._running_sums(cells.flatten(0, 1), rows))
    assert plain.shape == compiled.shape == (8, 101 + shift, 101 + shift)
    torch.testing.assert_close(plain, compiled, rtol=1e-12, atol=1e-12)
    ends = torch.randint(0, 101 + shift, (2, 2, 4, 100)).sort(0).values
    plain, compiled = both_ways(lambda: of_evaluators._sum_stretches(cells, *ends))
    torch.testing.assert_close(plain, compiled, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize(("n_query", "n_key"), [(300, 300), (260, 333)])
@pytest.mark.parametrize("heads", [1, 3])
def test_a_value_of_each_row_by_cell(both_ways, n_query: int, n_key: int, heads: int) -> None:
    low, high = torch.randint(0, n_key + 1, (2, 1, heads, n_query)).sort(0).values
    high[..., :5] = low[..., :5]
    low, high = (held * (high > low) for held in (low, high))  # 0 where a row sees nothing
    positions = torch.arange(n_key - n_query, n_key)
    reach = Reach(low, high, high - low, None, n_key, positions)
    grid, values = CellGrid(n_query, n_key), torch.randn(2, 3, n_query, dtype=torch.float64)

    def added() -> torch.Tensor:
        into = torch.ones(2, 3, grid.n_rows, grid.n_keys, dtype=torch.float64)
        reach.add_by_cell(values, grid, into)
        return into

    assert added().numel() >= of_patterns.MANY
    place = torch.arange(n_key)
    seen = (place >= low[..., None]) & (place < high[..., None])
    wide = torch.zeros(2, 3, grid.n_rows * grid.step, grid.n_keys * grid.step).double()
    wide[:, :, :n_query, grid.lead : grid.lead + n_key] = seen * values[..., None]
    shape = (2, 3, grid.n_rows, grid.step, grid.n_keys, grid.step)
    for found in both_ways(added):
        torch.testing.assert_close(found, 1 + wide.view(shape).sum((3, 5)), rtol=1e-12, atol=1e-11)
