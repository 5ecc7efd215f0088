"""Faults planted into real training are told: which, in which head, from which step."""

from __future__ import annotations

import math

import pytest
import torch

from attncheck import HeadAlertError, HeadMonitor, MonitorWarning
from attncheck.models import TinyTransformer
from attncheck.monitor import HeadAlert, Thresholds
from tests.monitor.training import head_rows, train


def quiet(model: TinyTransformer) -> HeadMonitor:
    return HeadMonitor(model, every=10, on_alert="ignore", sequences=4)


def told(monitor: HeadMonitor | None) -> list[tuple[str, str, int]]:
    assert monitor is not None
    return [(alert.kind, alert.head, alert.step) for alert in monitor.alerts]


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_run_raises_no_alert(seed: int) -> None:
    _, monitor, losses = train(seed, steps=151, watch=quiet)
    assert losses[-1] < losses[0] - 0.5
    assert monitor is not None
    assert monitor.history.steps == list(range(0, 160, 10))
    assert told(monitor) == []


def test_weights_that_blow_up_collapse_the_entropy_of_their_head() -> None:
    def blow_up(model: TinyTransformer, step: int) -> None:
        if step == 35:
            head_rows(model, 1, 0, 0).mul_(60)
            head_rows(model, 1, 0, 1).mul_(60)

    _, monitor, _ = train(steps=61, fault=blow_up, watch=quiet)
    found = told(monitor)
    assert ("entropy_collapse", "L1H0", 40) in found
    assert ("max_logit", "L1H0", 40) in found
    assert {head for kind, head, _ in found if kind == "entropy_collapse"} == {"L1H0"}
    assert monitor is not None
    collapse = next(one for one in monitor.alerts if one.kind == "entropy_collapse")
    assert collapse.value < 0.05
    assert "normalised entropy" in str(collapse)
    assert "step 40, L1H0: entropy collapse: " in str(collapse)


def test_a_head_that_passes_nothing_on_is_dead_from_its_second_sample() -> None:
    def silence(model: TinyTransformer, step: int) -> None:
        if step >= 25:
            head_rows(model, 0, 1, 2).zero_()

    _, monitor, _ = train(steps=61, fault=silence, watch=quiet)
    assert told(monitor) == [("dead", "L0H1", 40)]
    assert monitor is not None
    assert "since step 30" in str(monitor.alerts[0])


def test_a_head_blind_to_its_input_is_dead() -> None:
    def blind(model: TinyTransformer, step: int) -> None:
        if step >= 25:
            head_rows(model, 1, 1, 0).zero_()

    _, monitor, _ = train(steps=61, fault=blind, watch=quiet)
    assert told(monitor) == [("dead", "L1H1", 40)]
    assert monitor is not None
    assert "looks at all keys alike" in str(monitor.alerts[0])


def test_tied_heads_are_duplicates_told_once() -> None:
    def tie(model: TinyTransformer, step: int) -> None:
        if step >= 25:
            for part in (0, 1):
                head_rows(model, 1, 1, part).copy_(head_rows(model, 1, 0, part))

    _, monitor, _ = train(steps=71, fault=tie, watch=quiet)
    assert told(monitor) == [("duplicate", "L1H0", 40)]
    assert monitor is not None
    assert "does what L1H1 does" in str(monitor.alerts[0])


def test_not_a_number_is_told_at_once_and_alone() -> None:
    def poison(model: TinyTransformer, step: int) -> None:
        if step == 30:
            head_rows(model, 0, 0, 0).fill_(math.nan)

    _, monitor, _ = train(steps=32, fault=poison, watch=quiet)
    found = told(monitor)
    assert ("not_finite", "L0H0", 30) in found
    assert ("not_finite", "L0H1", 30) not in found  # the other head of the layer still computes
    assert {kind for kind, _, _ in found} == {"not_finite"}


def test_sinks_are_told_as_they_grow() -> None:
    def pull(model: TinyTransformer, step: int) -> None:
        if step == 15:  # the start token gets a key that every query likes
            model.position.weight.data[0] *= 0
            model.embed.weight.data[0] = 3.0
            model.norms[0].get_parameter("bias").data.fill_(2.0)
            head_rows(model, 0, 0, 0).fill_(0.1)
            head_rows(model, 0, 0, 1).copy_(0.2 * torch.ones(32).sign())
            model.norms[0].get_parameter("bias").data[::2] *= -1
            head_rows(model, 0, 0, 0)[:, ::2] *= -1

    _, monitor, _ = train(steps=31, fault=pull, watch=quiet)
    assert monitor is not None
    sink = monitor.history["sink_mass"][:, 0]
    expected = sink[2] > 0.5 and sink[2] - sink[0] > 0.3
    assert (("sink_growth", "L0H0", 20) in told(monitor)) == expected


@pytest.mark.parametrize("how", ["warn", "raise", "function"])
def test_ways_to_be_told(how: str) -> None:
    def silence(model: TinyTransformer, step: int) -> None:
        head_rows(model, 0, 1, 2).zero_()

    heard: list[HeadAlert] = []
    way = {"warn": "warn", "raise": "raise", "function": heard.append}[how]

    def run() -> None:
        train(
            steps=11,
            fault=silence,
            watch=lambda model: HeadMonitor(model, every=10, on_alert=way),
        )

    if how == "warn":
        with pytest.warns(MonitorWarning, match="step 10, L0H1: dead: passes on"):
            run()
    elif how == "raise":
        with pytest.raises(HeadAlertError, match="L0H1: dead") as caught:
            run()
        assert caught.value.alerts[0].head == "L0H1"
    else:
        run()
        assert [alert.head for alert in heard] == ["L0H1"]


def test_thresholds_can_be_switched_off_and_are_checked() -> None:
    def silence(model: TinyTransformer, step: int) -> None:
        head_rows(model, 0, 1, 2).zero_()

    def lenient(model: TinyTransformer) -> HeadMonitor:
        return HeadMonitor(model, 10, on_alert="raise", thresholds=Thresholds(dead=None))

    _, monitor, _ = train(steps=21, fault=silence, watch=lenient)
    assert told(monitor) == []
    with pytest.raises(ValueError, match="collapse: got -1"):
        Thresholds(collapse=-1)
