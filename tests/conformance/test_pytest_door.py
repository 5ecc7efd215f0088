"""The pytest door, seen from outside: ids, ``-k``, xfail, skips, the message."""

from __future__ import annotations

import pytest

SOURCE = """
import torch
import attncheck

def half_right(query, key, value, attn_mask=None, is_causal=False, scale=None):
    if attn_mask is not None:
        raise NotImplementedError("no masks")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query @ key.mT * scale
    if is_causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(0).bool(), -torch.inf)
    return scores.softmax(-1) @ value

@attncheck.parametrize_with_checks(
    [half_right],
    effort="quick",
    select=["scale", "causal", "mask-bool"],
    expected_failures={EXPECTED},
)
def test_attention(attention, check):
    check(attention)
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(SOURCE.replace("{EXPECTED}", "{'causal-square': 'hides the diagonal'}"))
    return pytester


def test_k_selects_by_id(project: pytest.Pytester) -> None:
    result = project.runpytest_inprocess(
        "-p", "no:cacheprovider", "-v", "-k", "scale-zero and not causal"
    )
    result.assert_outcomes(passed=1, deselected=12)
    result.stdout.fnmatch_lines(["*test_attention*half_right-scale-zero* PASSED*"])


def test_failures_skips_and_xfails(project: pytest.Pytester) -> None:
    result = project.runpytest_inprocess("-p", "no:cacheprovider", "-k", "causal or mask")
    outcomes = result.parseoutcomes()
    assert outcomes["xfailed"] == 1
    assert outcomes["skipped"] == 1
    assert outcomes["failed"] >= 2
    result.stdout.fnmatch_lines(
        ["*CheckFailure: causal-*", "*likely *", "*import half_right as attention*"]
    )


def test_an_expected_failure_that_passes_fails(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SOURCE.replace("{EXPECTED}", "{'scale-zero': 'thought so'}"))
    result = pytester.runpytest_inprocess(
        "-p", "no:cacheprovider", "-k", "scale-zero and not causal"
    )
    result.assert_outcomes(failed=1, deselected=12)
    result.stdout.fnmatch_lines(["*XPASS(strict)*thought so*"])


CALLABLE = """
from dataclasses import dataclass
import torch
import attncheck

@dataclass
class Attention:  # compares by value, so it cannot be hashed
    power: float

    def __call__(self, query, key, value):
        return (query @ key.mT * query.shape[-1] ** self.power).softmax(-1) @ value

@attncheck.parametrize_with_checks(
    [Attention(-0.5), Attention(-1.0)], effort="quick", select=["scale-default"]
)
def test_attention(attention, check):
    check(attention)
"""


def test_callables_that_cannot_be_hashed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(CALLABLE)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*likely *1/d*"])


@pytest.mark.slow
def test_workers_agree_on_the_items(project: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    result = project.runpytest_inprocess(
        "-p", "no:cacheprovider", "-n", "2", "-k", "scale-default or scale-given"
    )
    result.assert_outcomes(failed=2)  # the diagonal is hidden; who runs it makes no difference
    listed = project.runpytest_inprocess("-p", "no:cacheprovider", "--collect-only", "-q")
    listed.stdout.fnmatch_lines(["*test_attention?half_right-scale-default?", "*13 tests*"])
