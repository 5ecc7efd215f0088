"""Compiled sums and cuts on a grid of cells find what torch finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attncheck.evaluate import segments as of_evaluators
from attncheck.evaluate.lines import ClearLines
from attncheck.evaluate.reach import Reach
from attncheck.evaluate.tally import Tally
from attncheck.evaluate.targets import Targets
from attncheck.patterns import segments as of_patterns
from attncheck.patterns import thresholds
from attncheck.patterns.cells import CellGrid
from attncheck.patterns.grid import Marks

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


@pytest.mark.parametrize("shift", [0, 3, -40, -60])
def test_running_sums_and_stretches(both_ways, shift: int) -> None:
    grid = CellGrid(100, 100 + shift)
    cells = torch.randn(2, 10, 100, 100 + shift, dtype=torch.float64)
    plain, compiled = both_ways(lambda: of_patterns.running_sums(grid, cells.flatten(0, 1)))
    assert plain.shape == compiled.shape == (20, 101 + shift, 101 + shift)
    torch.testing.assert_close(plain, compiled, rtol=1e-12, atol=1e-12)
    ends = torch.randint(0, 101 + shift, (2, 2, 10, 100)).sort(0).values
    plain, compiled = both_ways(lambda: of_evaluators._sum_stretches(cells, *ends))
    torch.testing.assert_close(plain, compiled, rtol=1e-12, atol=1e-11)


def excess_of(weights: torch.Tensor, tally: Tally, even: torch.Tensor, lines: ClearLines):
    """Above even attention and beside the lines, weight by weight, before each two edges."""
    reach, grid = tally.reach, tally.grid
    place = torch.arange(grid.n_key)
    seen = (place >= reach.low[..., None]) & (place < reach.high[..., None])
    excess = weights - even[..., None] * seen
    excess[lines.cells] = 0
    wide = torch.zeros(2, 3, grid.n_rows * grid.step, grid.n_keys * grid.step).double()
    wide[:, :, : grid.n_query, grid.lead : grid.lead + grid.n_key] = excess
    cells = wide.view(2, 3, grid.n_rows, grid.step, grid.n_keys, grid.step).sum((3, 5))
    summed = torch.nn.functional.pad(cells.cumsum(-1).cumsum(-2), (1, 0, 1, 0))
    return torch.nn.functional.pad(summed, (0, 0, grid.shift, 0))


@pytest.mark.parametrize(("n_query", "n_key"), [(300, 300), (260, 333), (140, 170), (500, 140)])
@pytest.mark.parametrize("heads", [1, 3])
def test_sums_above_even_attention(
    both_ways, monkeypatch: pytest.MonkeyPatch, n_query: int, n_key: int, heads: int
) -> None:
    generator = torch.Generator().manual_seed(n_query + heads)
    ends = torch.randint(0, n_key + 1, (2, 1, heads, n_query), generator=generator)
    low, high = ends.sort(0).values
    high[..., :5] = low[..., :5]
    low, high = (held * (high > low) for held in (low, high))  # 0 where a row sees nothing
    positions = torch.arange(n_key - n_query, n_key)
    reach = Reach(low, high, high - low, None, n_key, positions)
    place = torch.arange(n_key)
    seen = (place >= low[..., None]) & (place < high[..., None])
    even = torch.rand(2, 3, n_query, generator=generator, dtype=torch.float64)
    weights = torch.rand(2, 3, n_query, n_key, generator=generator, dtype=torch.float64) * seen
    on_lines = seen & (torch.rand(2, 3, n_query, n_key, generator=generator) < 0.01)
    points = on_lines.nonzero()[torch.randperm(int(on_lines.sum()), generator=generator)]
    assert len(points) > 100
    points = tuple(points.T)
    lines = ClearLines(place < 0, place < 0, points, weights[points])
    usable = torch.ones(2, 3, n_query, dtype=torch.bool)
    targets = Targets(Marks(), reach, positional=True)
    tally = Tally.empty(None, targets, usable, usable, torch.float64)  # type: ignore[arg-type]
    every = slice(0, n_query), slice(0, n_key)
    tally.cells.copy_(tally.grid.sum_keys(tally.grid.sum_rows(weights), *every)[2])
    worth = torch.tensor([[True, False, True], [True, True, True]])
    expected = excess_of(weights, tally, even, lines)[worth]
    assert tally.cells.numel() >= of_patterns.MANY
    looped, in_loop = [], of_evaluators._sum_excess_in_loop
    spy = lambda *held: looped.append(1) or in_loop(*held)  # noqa: E731
    monkeypatch.setattr(of_evaluators, "_sum_excess_in_loop", spy)
    for sums in both_ways(lambda: of_evaluators._sum_excess(tally, lines, even, worth)):
        torch.testing.assert_close(sums, expected, rtol=1e-11, atol=1e-9)
    assert len(looped) == 1


def test_what_blocks_of_shuffled_rows_sum_up_to() -> None:
    keys = torch.randint(0, 9, (2, 3, 50))
    inside = (keys * torch.rand(2, 3, 50)).long()
    mass, square = torch.rand(2, 2, 3, 50).double()
    found = torch.rand(2, 3, 7).double()
    plain, compiled = (
        of_evaluators._sums(found, inside, keys, (mass, square), looped=looped)
        for looped in (False, True)
    )
    for name in ("mass", "chance", "rows", "variance"):
        np.testing.assert_allclose(getattr(compiled, name), getattr(plain, name), rtol=1e-12)
    assert (plain.variance > 0).all()
