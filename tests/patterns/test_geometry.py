"""Diagonals read in place, and cuts found on a grid, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attncheck.attention import LayerAttention
from attncheck.patterns import collect_evidence
from attncheck.patterns.diagonals import by_offset, sum_diagonals
from attncheck.patterns.segments import find_segments


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n_query", "n_key"), [(1, 1), (1, 5), (2, 5), (5, 5), (4, 11), (7, 3)])
def test_diagonals_are_summed_as_by_a_loop(n_query: int, n_key: int, causal: bool) -> None:
    matrix = torch.rand(2, 3, n_query, n_key, dtype=torch.float64)
    if causal:
        matrix = matrix.tril(n_key - n_query)
    expected = np.zeros((2, 3, n_key + n_query - 1))
    for i in range(n_query):
        for j in range(n_key):
            offset = n_key - n_query + i - j
            expected[..., offset + n_query - 1] += matrix[:, :, i, j].numpy()
    np.testing.assert_allclose(sum_diagonals(matrix, causal).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(by_offset(matrix).sum(-2).numpy(), expected, atol=1e-12)
    part = torch.stack([matrix, matrix], dim=-1)[..., 0]  # not contiguous
    np.testing.assert_allclose(sum_diagonals(part, causal).numpy(), expected, atol=1e-12)


def blocks(cuts: list[int], n: int, rows: int, causal: bool) -> torch.Tensor:
    """Excess over even attention of a head whose rows are even over their segment."""
    number = (torch.arange(n)[:, None] >= torch.tensor(cuts)).sum(-1)
    seen = torch.ones(n, n, dtype=torch.float64)
    seen = seen.tril() if causal else seen
    same = (number[:, None] == number) * seen
    weights = same / same.sum(-1, keepdim=True) - seen / seen.sum(-1, keepdim=True)
    return weights[None, n - rows :]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("n", "rows", "cuts"),
    [(40, 40, [7, 19]), (300, 300, [43, 101, 222]), (517, 517, [131, 398]), (530, 261, [371, 455])],
)
def test_cuts_are_found_where_they_are(n: int, rows: int, cuts: list[int], causal: bool) -> None:
    found = find_segments(blocks(cuts, n, rows, causal), torch.zeros(1, rows), causal)[0]
    expected = torch.tensor([max([0, *(c for c in cuts if c <= j)]) for j in range(n)])
    inside = torch.arange(n) >= n - rows if causal else torch.ones(n, dtype=torch.bool)
    assert torch.equal(found[inside], expected[inside])


@pytest.mark.parametrize("causal", [False, True])
def test_block_sums_beside_lines_equal_a_plain_loop(causal: bool) -> None:
    """Three columns and diagonals stand out; the others are even inside two given segments."""
    n, segments = 12, [0] * 5 + [1] * 7
    weights = 0.2 * torch.rand(n, n, dtype=torch.float64) / n
    weights[:, 0] += 0.3
    weights += 0.3 * torch.eye(n)
    weights = weights.tril() if causal else weights
    weights = weights / weights.sum(-1, keepdim=True)
    evidence = collect_evidence(
        LayerAttention(weights[None, None], causal=causal), segment_ids=segments
    )
    mass = chance = rest = 0.0
    for i in range(causal, n):
        seen = [j for j in range(i + 1 if causal else n) if j not in (0, i)]
        left = sum(float(weights[i, j]) for j in seen)
        own = [j for j in seen if segments[j] == segments[i]]
        mass += sum(float(weights[i, j]) for j in own)
        chance += left * len(own) / max(1, len(seen))
        rest += left if own else 0
    assert evidence.beside.mass[0] == pytest.approx(mass)
    assert evidence.beside.chance[0] == pytest.approx(chance)
    assert evidence.beside.rows[0] == pytest.approx(rest)


@pytest.mark.parametrize(
    ("causal", "variance", "cut"),
    [(False, 0.2, True), (False, 0.3, False), (True, 0.15, True), (True, 0.3, False)],
)
def test_a_cut_must_gain_more_than_noise(causal: bool, variance: float, cut: bool) -> None:
    """The gain is 20 over 800 cells, or 13.6 over the 400 that are visible; 1.5 sigma are asked."""
    excess, spread = blocks([20], 40, 40, causal), torch.full((1, 40), variance)
    assert bool(find_segments(excess, spread, causal).any()) == cut
