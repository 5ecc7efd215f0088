"""The rules one by one, on samples made by hand."""

from __future__ import annotations

import math

from attncheck.monitor import HeadSample, Thresholds
from attncheck.monitor.rules import Judge


def sample(step: int, **measures: tuple[float, float]) -> HeadSample:
    """Two heads of one layer; what is not given is healthy."""
    rows = {
        "normalized_entropy": (0.6, 0.6),
        "sink_mass": (0.1, 0.1),
        "max_logit": (3.0, 3.0),
        "output_rms": (1.0, 1.0),
        "twin_distance": (1.4, 1.4),
        "bad_rows": (0.0, 0.0),
        "previous_token": (0.1, 0.1),
        **measures,
    }
    return HeadSample(step, 0.0, ("L0H0", "L0H1"), rows, ("uniform",) * 2, ("L0H1", "L0H0"))


def run(*samples: HeadSample, **thresholds: float | None) -> list[tuple[int, str, str]]:
    judge = Judge(Thresholds(**thresholds))  # type: ignore[arg-type]
    return [(a.step, a.kind, a.head) for one in samples for a in judge.judge(one)]


def test_a_crisp_head_is_ill_only_without_a_pattern_or_with_large_scores() -> None:
    crisp = sample(1, normalized_entropy=(0.01, 0.6))
    assert run(sample(0), crisp) == [(1, "entropy_collapse", "L0H0")]
    positional = sample(1, normalized_entropy=(0.01, 0.6), previous_token=(0.99, 0.1))
    assert run(sample(0), positional) == []
    blown = sample(
        1, normalized_entropy=(0.01, 0.6), previous_token=(0.99, 0.1), max_logit=(200.0, 3.0)
    )
    assert (1, "entropy_collapse", "L0H0") in run(sample(0), blown)


def test_a_head_that_was_always_crisp_has_not_collapsed() -> None:
    assert run(*(sample(step, normalized_entropy=(0.04, 0.6)) for step in range(3))) == []


def test_scores_are_told_again_tenfold() -> None:
    heights = (50.0, 150.0, 900.0, 1100.0, 9000.0, 20000.0, 10.0, 120.0)
    found = run(*(sample(at, max_logit=(value, 3.0)) for at, value in enumerate(heights)))
    assert [step for step, kind, _ in found if kind == "max_logit"] == [1, 3, 5, 7]


def test_a_fault_is_told_when_it_begins_and_again_when_it_returns() -> None:
    sinks = (0.1, 0.7, 0.8, 0.2, 0.9)
    found = run(*(sample(at, sink_mass=(value, 0.1)) for at, value in enumerate(sinks)))
    assert found == [(1, "sink_growth", "L0H0"), (4, "sink_growth", "L0H0")]


def test_a_sink_from_the_start_has_not_grown() -> None:
    assert run(*(sample(step, sink_mass=(0.95, 0.95)) for step in range(3))) == []


def test_heads_that_both_rest_are_no_duplicates() -> None:
    close = {"twin_distance": (0.001, 0.001)}
    assert run(sample(0, **close), sample(1, **close)) == [(1, "duplicate", "L0H0")]
    resting = {**close, "sink_mass": (0.95, 0.95)}
    assert run(sample(0, **resting), sample(1, **resting)) == []


def test_even_attention_everywhere_is_a_start_not_a_death() -> None:
    even = {"normalized_entropy": (1.0, 1.0)}
    assert run(*(sample(step, **even) for step in range(3))) == []
    one = {"normalized_entropy": (1.0, 0.5)}
    assert run(*(sample(step, **one) for step in range(3))) == [(1, "dead", "L0H0")]


def test_what_was_not_measured_raises_nothing() -> None:
    unknown = dict.fromkeys(("max_logit", "output_rms", "twin_distance"), (math.nan, math.nan))
    assert run(*(sample(step, **unknown) for step in range(3))) == []
    assert run(*(sample(step, output_rms=(math.nan, 1.0)) for step in range(3))) == []


def test_nothing_else_is_said_of_a_head_that_holds_nan() -> None:
    bad = sample(0, bad_rows=(0.5, 0.0), max_logit=(1e6, 3.0))
    assert run(bad) == [(0, "not_finite", "L0H0")]
    assert run(bad, not_finite=False)[0] == (0, "max_logit", "L0H0")
