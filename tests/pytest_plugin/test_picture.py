"""A head as text."""

from __future__ import annotations

import numpy as np
import pytest

from attncheck.checks import Evidence
from attncheck.pytest_plugin.picture import draw


def evidence(weights: np.ndarray, offending: tuple[int, int] | None = None) -> Evidence:
    bad = np.zeros(weights.shape, dtype=bool)
    if offending is not None:
        bad[offending] = True
    return Evidence("L0H0", weights, bad, np.tri(*weights.shape, dtype=bool))


def test_shades_are_shares_of_the_largest_weight() -> None:
    weights = np.zeros((5, 5), dtype=np.float32)
    weights[4] = [0, 0.05, 0.1, 0.15, 0.2]
    assert draw(evidence(weights)).splitlines()[-2:] == ["··░░▒▒▓▓██", "██ 0.2"]
    assert draw(evidence(weights)).splitlines()[1] == "····"


def test_nan_and_nothing_at_all() -> None:
    assert draw(evidence(np.zeros((2, 2)))).splitlines() == ["··", "····", "██ 0"]
    lines = draw(evidence(np.full((2, 2), np.nan), (0, 1))).splitlines()
    assert lines[0] == "··!!"


@pytest.mark.parametrize("shape", [(1, 1), (24, 32), (25, 25), (512, 512), (3, 512), (512, 7)])
def test_any_size_fits_and_keeps_a_lone_offender(shape: tuple[int, int]) -> None:
    weights = np.ones(shape) / shape[1]
    where = (shape[0] // 2, shape[1] - 1)
    lines = draw(evidence(weights, where)).splitlines()
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 64
    assert sum(line.count("!!") for line in lines[:-1]) == 1
    block = max(1, -(-shape[0] // 24), -(-shape[1] // 32))
    assert lines[where[0] // block][2 * (where[1] // block) :].startswith("!!")
    assert (f"one mark is {block} x {block} cells" in lines[-1]) is (block > 1)


def test_a_window_says_where_it_begins() -> None:
    held = Evidence("L0H0", np.eye(2), np.eye(2) > 1, np.eye(2) > 0, query_start=7, key_start=5)
    assert draw(held).endswith("from query 7, key 5")
