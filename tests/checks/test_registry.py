"""The registry, and what all assertions have in common."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch

import attncheck.checks
from attncheck.checks import CHECKS, assert_causal
from attncheck.errors import CheckFailure
from tests.checks.samples import random_weights


def test_every_check_has_a_door_with_the_same_arguments() -> None:
    for name, check in CHECKS.items():
        assert check.name == name
        assert check.summary
        assert check.source
        door = getattr(attncheck.checks, f"assert_{name}")
        run = getattr(attncheck.checks, f"check_{name}")
        assert check.run is run
        ours, theirs = inspect.signature(door), inspect.signature(run)
        assert ours.parameters == theirs.parameters
        assert "__tracebackhide__ = True" in inspect.getsource(door)
        assert name in run.__doc__


def test_the_registry_is_read_only() -> None:
    with pytest.raises(TypeError):
        CHECKS["causal"] = CHECKS["entropy"]  # type: ignore[index]


def test_a_finding_names_its_check() -> None:
    weights = random_weights(1, 2, 6, 6)
    options: dict[str, dict[str, object]] = {
        "mask_respected": {"mask": torch.arange(6) < 4},
        "sliding_window": {"window": 2},
        "segments_isolated": {"segment_ids": [0, 0, 0, 1, 1, 1]},
        "entropy": {"max": 0.1},
        "sink_mass": {"max": 0.01},
        "pattern": {"pattern": "diagonal", "min_mass": 1.0},
        "attention_close": {"expected": weights.flip(-1)},
        "heads_distinct": {"min_distance": 1.0},
    }
    for name, check in CHECKS.items():
        given = weights * 2 if name == "row_stochastic" else weights
        finding = check.run(given, **options.get(name, {}))
        assert finding.check == name
        assert not finding.passed
        assert finding.evidence is not None
        assert finding.hints
        assert finding.n_passed == finding.n_total - len(finding.offenders)


def test_assertions_hold_under_python_o() -> None:
    code = (
        "import torch\n"
        "from attncheck import assert_causal, CheckFailure\n"
        "assert False, 'asserts are on'\n"
        "try:\n"
        "    assert_causal(torch.full((4, 4), 0.25))\n"
        "except CheckFailure as failure:\n"
        "    print(str(failure).splitlines()[0])\n"
    )
    ran = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True)
    assert ran.stdout == "not causal: 6 of 6 future weights > 1e-05\n", ran.stderr


def test_the_failure_carries_its_finding() -> None:
    with pytest.raises(CheckFailure) as caught:
        assert_causal(torch.full((4, 4), 0.25))
    assert isinstance(caught.value, AssertionError)
    assert caught.value.finding.check == "causal"
    assert type(caught.value).__module__ == "attncheck"


def test_later_calls_of_a_module_say_which() -> None:
    from attncheck.attention import AttentionMaps, LayerAttention
    from attncheck.checks import check_causal

    maps = AttentionMaps(
        [LayerAttention(random_weights(1, 1, 4, 4), index=3, call=call) for call in range(2)]
    )
    assert {o.head for o in check_causal(maps).offenders} == {"L3H0", "L3H0 call 1"}
