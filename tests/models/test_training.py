"""The script that trains the shipped model: right data, right loss, and it does learn."""

from __future__ import annotations

import importlib.util
import itertools
from types import ModuleType

import pytest
import torch

from attncheck.models.fixture_files import fixture_path


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_tiny", fixture_path("train_tiny.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_walks_go_round_their_own_cycle_and_jump_now_and_then(script: ModuleType) -> None:
    ids = script.walks(400, torch.Generator().manual_seed(0))
    assert ids.shape == (400, 32)
    assert (ids[:, 0] == 0).all()
    assert (ids[:, 1:] > 0).all()
    onward, steps, sizes = 0, 0, set()
    for row in ids[:, 1:].tolist():
        successors: dict[int, list[int]] = {}
        for token, following in itertools.pairwise(row):
            successors.setdefault(token, []).append(following)
        for following in successors.values():
            usual = max(set(following), key=following.count)
            if len(following) >= 3:
                steps += len(following)
                onward += following.count(usual)
        sizes.add(len(set(row)))
    assert 0.8 < onward / steps < 0.95
    assert min(sizes) == 4
    assert 11 <= max(sizes) <= 14


def test_predictable_marks_bigrams_that_occurred_before(script: ModuleType) -> None:
    ids = torch.tensor([[0, 1, 2, 1, 2, 3, 2, 1, 2, 3]])
    seen: set[tuple[int, int]] = set()
    expected = []
    for pair in itertools.pairwise(ids[0].tolist()):
        expected.append(pair in seen)
        seen.add(pair)
    assert script.predictable(ids)[0].tolist() == expected
    assert sum(expected) == 4


def test_loss_counts_predictable_positions_only(script: ModuleType) -> None:
    ids = torch.tensor([[0, 1, 2, 1, 2]])
    logits = torch.zeros(1, 5, 32)
    logits[0, 3, 2] = 4.0
    expected = torch.log(torch.exp(torch.tensor(4.0)) + 31) - 4.0
    assert script.copy_loss(lambda _: logits, ids) == pytest.approx(expected.item(), abs=1e-6)
    logits[0, :3] = 100 * torch.rand(3, 32)
    assert script.copy_loss(lambda _: logits, ids) == pytest.approx(expected.item(), abs=1e-6)


def test_learning_rate_warms_up_stays_and_decays_to_zero(script: ModuleType) -> None:
    factors = [script.learning_rate(step, 1000) for step in range(1001)]
    assert factors[0] == pytest.approx(0.02)
    assert factors[49:700] == [1.0] * 651
    assert factors[850] == pytest.approx(0.5)
    assert factors[1000] == 0.0


@pytest.mark.slow
def test_training_still_finds_the_circuit(script: ModuleType) -> None:
    model = script.train(steps=700, seed=2, log_every=0)
    scores = script.measure(model, range(9, 13, 3))
    for period in ("9", "12"):
        assert scores[period]["accuracy"] > 0.95
        assert max(scores[period]["previous_token"][head] for head in ("L0H0", "L0H1")) > 0.5
        assert max(scores[period]["induction"][head] for head in ("L1H0", "L1H1")) > 0.7


def test_training_repeats_bit_for_bit(script: ModuleType) -> None:
    first, second = (script.train(steps=3, seed=5, log_every=0).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
