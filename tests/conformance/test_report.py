"""The report: one cause told once, worst first, and the verdict on what does not work at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attncheck.conformance import PROPERTIES, ConformanceReport, Failure, check_attention
from attncheck.conformance.case import Case
from attncheck.conformance.report import Outcome
from attncheck.conformance.reproduce import property_script
from attncheck.conformance.subject import Subject
from tests.conformance.implementations import IMPLEMENTATIONS, einsum_attention


def failed(id: str, severity: float, mechanism: str = "", violated: str = "wrong") -> Outcome:
    failure = Failure(id, "why", violated, severity, "input", {}, mechanism, "", {})
    return Outcome(id, id.split("-", maxsplit=1)[0], "failed", 1, 0, 0.0, failure)


def report(*outcomes: Outcome) -> ConformanceReport:
    return ConformanceReport("mine", "quick", 0, list(outcomes))


def test_failures_of_one_cause_are_told_once() -> None:
    found = report(
        failed("scale-given", 2.0, "matches no scale at all"),
        failed("mask-bool", 5.0),
        failed("scale-default", 9.0, "matches no scale at all"),
        failed("softmax-large", 3.0, "matches no scale at all"),
        failed("causal-square", 4.0),
    )
    ids = [[failure.id for failure in alike] for alike in found.groups()]
    assert ids == [
        ["scale-default", "softmax-large", "scale-given"],
        ["mask-bool"],
        ["causal-square"],
    ]
    text = str(found)
    assert text.count("matches no scale at all") == 1
    assert "  alike     softmax-large, scale-given" in text
    assert "scale-given: wrong" not in text
    assert text.index("scale-default: ") < text.index("mask-bool: ") < text.index("causal-square: ")


def test_crashes_of_one_text_are_told_once_and_other_words_are_not() -> None:
    found = report(
        failed("gqa-ratios", float("inf"), violated="raised IndexError: 3"),
        failed("gqa-strided", float("inf"), violated="raised IndexError: 3"),
        failed("gqa-expanded", float("inf"), violated="raised IndexError: 4"),
        failed("mask-bool", 2.0, violated="output is wrong"),
        failed("mask-float", 1.0, violated="output is wrong"),
    )
    assert [len(alike) for alike in found.groups()] == [2, 1, 1, 1]


def test_a_long_list_of_the_same_is_wrapped_and_whole() -> None:
    ids = [f"family-property-number-{number}" for number in range(12)]
    text = str(report(*(failed(id, 1.0, "one cause") for id in ids)))
    assert all(id in text for id in ids)
    assert max(len(line) for line in text.splitlines()) < 100


def test_a_real_cause_is_grouped() -> None:
    def unscaled(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, **flags: Any) -> Tensor:
        got: Tensor = einsum_attention(q, k, v, attn_mask, **{**flags, "scale": 1.0})
        return got

    found = check_attention(unscaled, effort="quick", select=["scale"], raises=False)
    largest = max(found.groups(), key=len)
    assert len(largest) >= 3
    assert len({failure.mechanism for failure in largest}) == 1
    assert sum(map(len, found.groups())) == len(found.failures)


def nothing(*args: Any, **flags: Any) -> None:
    """Return nothing."""


def pair(q: Tensor, k: Tensor, v: Tensor, **flags: Any) -> tuple[Tensor, None]:
    return einsum_attention(q, k, v), None


def transposed(q: Tensor, k: Tensor, v: Tensor, **flags: Any) -> Tensor:
    got: Tensor = einsum_attention(q, k, v)
    return got.transpose(1, 2)


def broken(q: Tensor, k: Tensor, v: Tensor, **flags: Any) -> Tensor:
    raise IndexError("tuple index out of range")


def other_names(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (nothing, "output is NoneType, expected a tensor"),
        (pair, "output is tuple, expected a tensor; say returns_weights=True"),
        (transposed, "shape of the output is (2, 4, 2, 8), expected (2, 2, 4, 8)"),
        (broken, "raised IndexError: tuple index out of range"),
        (other_names, "it is called as attention(query, key, value)"),
    ],
)
def test_what_does_not_work_at_all_is_one_failure(function: Callable[..., Any], words: str) -> None:
    found = check_attention(function, effort="quick", raises=False)
    assert [failure.id for failure in found.failures] == ["plain-input"]
    assert words in found.failures[0].violated
    assert "IndexError" not in words or "plain-input: raised" in str(found)
    assert f"import {function.__name__} as attention" in found.failures[0].script
    assert [outcome.id for outcome in found.outcomes] == ["plain-input"]


def test_one_dtype_that_crashes_does_not_hide_the_others() -> None:
    """Not everything is broken, so everything is checked, and the crash is told by properties."""

    def crashes(q: Tensor, k: Tensor, v: Tensor, **flags: Any) -> Tensor:
        if q.dtype == torch.float32:
            raise IndexError("float32")
        got: Tensor = einsum_attention(q, k, v, **flags)
        return got

    found = check_attention(crashes, effort="quick", select=["scale-default"], raises=False)
    assert [failure.id for failure in found.failures] == ["scale-default"]
    assert "IndexError" in found.failures[0].violated


@pytest.mark.parametrize(
    ("word", "near"), [("mask-bol", "mask-bool"), ("acuracy-bias", "accuracy-bias")]
)
def test_a_misspelt_id_is_told_its_neighbour(word: str, near: str) -> None:
    with pytest.raises(ValueError, match=near):
        check_attention(einsum_attention, select=[word])
    with pytest.raises(ValueError, match=near):
        check_attention(einsum_attention, expected_failures={word: "known"})


def test_a_relation_says_when_one_call_is_wrong_already() -> None:
    """Calls that agree with each other, and not with the oracle, disturb nobody."""

    def too_small(q: Tensor, k: Tensor, v: Tensor, **flags: Any) -> Tensor:
        output: Tensor = einsum_attention(q, k, v, **flags)
        return output * 0.9

    report = check_attention(
        too_small,
        effort="quick",
        select=["state-threads", "relation-permute-keys"],
        raises=False,
    )
    assert report.failures
    for failure in report.failures:
        assert "but one call alone is wrong too: output is wrong at" in failure.violated
        assert "want = s.softmax(-1)" in failure.script


def test_finite_differences_are_not_tried_in_float32() -> None:
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: Tensor) -> Tensor:
            return query.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return 2 * grad

    def wrong_gradient(q: Tensor, k: Tensor, v: Tensor, **flags: Any) -> Tensor:
        output: Tensor = einsum_attention(Twice.apply(q), k, v, **flags)
        return output

    report = check_attention(
        wrong_gradient, effort="quick", select=["gradient-finite-differences"], raises=False
    )
    (failure,) = report.failures
    assert "gradient of query predicts" in failure.violated
    assert failure.input.startswith("float64")


@pytest.mark.parametrize("id", ["state-sizes-shrink", "state-uninitialised", "causal-prefix"])
def test_scripts_of_functions_that_return_weights_run(id: str) -> None:
    subject = Subject(IMPLEMENTATIONS["einsum with weights"].function, returns_weights=True)
    case = Case(n_query=4, n_key=4, causal=id == "causal-prefix")
    script = property_script(PROPERTIES[id], case, subject)
    assert len(script.splitlines()) < 15
    exec(script, {})
